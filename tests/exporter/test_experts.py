"""Experts are recognised by their gate, become one operator, and are joined from the pieces of a checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from gptport import experts
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError, UnsupportedModel

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "vocab_size": 384,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def randomized(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.2)
    return model


@pytest.fixture(scope="session")
def mixtral(save):
    torch.manual_seed(3)
    return save(randomized(MixtralForCausalLM(MixtralConfig(**SHAPE))), "mixtral")


@pytest.fixture(scope="session")
def gpt_oss(save):
    torch.manual_seed(4)
    return save(randomized(GptOssForCausalLM(GptOssConfig(**SHAPE, sliding_window=8))), "gpt_oss")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_only_the_chosen_experts_are_computed_and_the_logits_are_torchs(
    request, exported, start, in_torch, name
):
    checkpoint = request.getfixturevalue(name)
    result = exported(checkpoint)
    assert result.lowering.changes["fuse_experts"] == 3
    ids = list(range(1, 21))
    sequence = start(next(iter(result.folders.values())))
    got = [sequence.append(ids[:17]), *(sequence.append([token]) for token in ids[17:])]
    np.testing.assert_allclose(got, in_torch(checkpoint, ids)[16:], atol=2e-3)


def test_experts_that_are_stored_one_by_one_are_joined_as_transformers_does(mixtral):
    checkpoint = open_checkpoint(str(mixtral))
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in checkpoint.naming.stored
    loaded = MixtralForCausalLM.from_pretrained(mixtral).state_dict()
    for name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"):
        assert name in checkpoint
        assert checkpoint.shape(name) == tuple(loaded[name].shape)
        assert torch.equal(checkpoint.tensor(name), loaded[name])


def test_experts_are_not_quantized(mixtral, export_to, tmp_path):
    with pytest.raises(UnsupportedModel, match="experts cannot be quantized yet"):
        export_to(mixtral, tmp_path, precision="int8")


def test_a_gate_is_recognised_by_its_numbers():
    assert experts._gate("mlp", MixtralExperts(MixtralConfig(**SHAPE))) == (1.0, 0.0, 0.0)
    assert experts._gate("mlp", GptOssExperts(GptOssConfig(**SHAPE))) == pytest.approx((1.702, 1.0, 7.0))


def test_another_gate_is_refused_by_name():
    other = MixtralExperts(MixtralConfig(**SHAPE, hidden_act="relu"))
    with pytest.raises(UnsupportedModel, match="the experts mlp have a gate other than SwiGLU"):
        experts._gate("mlp", other)


@pytest.fixture(scope="session")
def glm4_moe(save):
    """Its router has a bias that is no parameter: a stored buffer, zeros in a model that was just made."""
    torch.manual_seed(5)
    moe = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    shape = {key: value for key, value in SHAPE.items() if key != "num_local_experts"}
    model = randomized(
        Glm4MoeForCausalLM(Glm4MoeConfig(**{**shape, **moe, "head_dim": 32, "moe_intermediate_size": 32}))
    )
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(buffer)
    return save(model, "glm4_moe")


def test_a_stored_buffer_is_read_from_the_checkpoint(glm4_moe, exported, start, in_torch):
    sequence = start(next(iter(exported(glm4_moe).folders.values())))
    ids = list(range(1, 21))
    np.testing.assert_allclose(sequence.append(ids), in_torch(glm4_moe, ids)[-1], atol=2e-3)


def test_a_checkpoint_that_lacks_a_stored_buffer_is_refused(glm4_moe, export_to, copy, tmp_path):
    folder = copy(glm4_moe)
    tensors = load_file(folder / "model.safetensors")
    name = next(each for each in tensors if each.endswith("e_score_correction_bias"))
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has no tensor '{name}'"):
        export_to(folder, tmp_path / "repository")
