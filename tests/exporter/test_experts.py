"""Experts are recognised by their gate, become one operator, and are joined from the pieces of a checkpoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from gptport import doctor, experts, images, report
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError, UnsupportedModel
from gptport.precision import chosen
from small_models import write_model

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


@pytest.fixture(scope="session")
def qwen3_moe(save):
    torch.manual_seed(7)
    shape = {key: value for key, value in SHAPE.items() if key != "num_local_experts"}
    config = Qwen3MoeConfig(**shape, num_experts=5, moe_intermediate_size=48)
    return save(randomized(Qwen3MoeForCausalLM(config)), "qwen3_moe")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen3_moe"])
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


def in_integers(bits, **changes):
    """A rounding error may choose another expert, whose weights are random here: no measure of the graph."""
    precision = chosen(f"int{bits}", max_perplexity_increase=10.0, **changes)
    return replace(precision, tolerance=5.0)


def graph_of(result):
    return onnx.load(next(iter(result.folders.values())) / "model.onnx")


def in_floats(model):
    """The same graph with, for each QMoE, a MoE on the weights that its integers stand for."""
    tensors = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "QMoE":
            continue
        said = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        names = [*node.input, *[""] * (13 - len(node.input))]
        for packed, scales, zeros in ((2, 3, 11), (5, 6, 12)):
            width = tensors[names[packed]].shape[2] * 8 // said["expert_weight_bits"]
            values, zero_points = (
                unpacked(tensors.get(names[place]), said["expert_weight_bits"], count)
                for place, count in ((packed, width), (zeros, width // said["block_size"]))
            )
            zero_points = (
                2 ** (said["expert_weight_bits"] - 1) if zero_points is None else spread(zero_points, said)
            )
            floats = (values - zero_points) * spread(tensors[names[scales]], said)
            model.graph.initializer.append(numpy_helper.from_array(floats, f"{names[packed]}.floats"))
        del node.input[:]
        first, second = (f"{names[place]}.floats" for place in (2, 5))
        node.input.extend([names[0], names[1], first, names[4], second, names[7]])
        node.op_type = "MoE"
        for each in [each for each in node.attribute if each.name in QUANTIZED]:
            node.attribute.remove(each)
    return model


QUANTIZED = ("expert_weight_bits", "block_size", "weights_prepacked")


def spread(blocks, said):
    return blocks.repeat(said["block_size"], axis=2)


def unpacked(values, bits, count):
    if values is None or bits == 8:
        return values if values is None else values.astype(np.float32)
    pairs = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:2], -1)
    return pairs[..., :count].astype(np.float32)


# 4 bits are multiplied in float32; with 8 bits the kernel rounds what it multiplies with to 8 bits too.
@pytest.mark.parametrize(("bits", "within"), [(4, 1e-5), (8, 0.02)])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_experts_in_integers_compute_what_their_integers_stand_for(
    request, export_to, tmp_path, name, symmetric, bits, within
):
    precision = in_integers(bits, symmetric=symmetric)
    result = export_to(request.getfixturevalue(name), tmp_path, precision=precision)
    assert result.lowering.changes["quantize_experts"] == 3
    assert result.lowering.not_quantized == ""
    model = graph_of(result)
    nodes = [node for node in model.graph.node if node.op_type == "QMoE"]
    assert {helper.get_node_attr_value(node, "block_size") for node in nodes} == {16}
    got, expected = (hidden_of(each) for each in (model, in_floats(graph_of(result))))
    assert np.abs(got - expected).max() < within * np.abs(expected).max()


def hidden_of(model):
    """What the experts of the first layer give, for random states [tokens, hidden]."""
    node = next(node for node in model.graph.node if node.op_type in ("MoE", "QMoE"))
    states, scores = np.random.default_rng(0).normal(size=(2, 24, 64)).astype(np.float32)
    experts = 5
    graph = helper.make_graph(
        [node],
        "experts",
        [
            helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, ["tokens", 64]),
            helper.make_tensor_value_info(node.input[1], TensorProto.FLOAT, ["tokens", experts]),
        ],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["tokens", 64])],
        [each for each in model.graph.initializer if each.name in node.input],
    )
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {node.input[0]: states, node.input[1]: scores[:, :experts]})
    return got


def test_a_router_stays_in_floats(checkpoints, gpt2, export_to, tmp_path):
    checkpoint = checkpoints / "afmoe"
    write_model("afmoe", checkpoint, gpt2)  # the router of which is a Linear
    graph = graph_of(export_to(checkpoint, tmp_path, precision=in_integers(4))).graph
    products = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert [".".join(name.split(".")[3:6]) for name in products] == ["mlp.router.gate"] * 3
    assert sum(node.op_type == "QMoE" for node in graph.node) == 3


def test_experts_in_integers_compute_in_half_precision(gpt_oss, export_to, tmp_path):
    result = export_to(gpt_oss, tmp_path, precision=in_integers(4, compute="fp16"))
    assert result.manifest.kv_cache.dtype == "float16"
    assert result.lowering.changes["quantize_experts"] == 3


def test_quantized_experts_take_a_quarter_of_the_bytes_and_are_said(mixtral, exported, export_to, tmp_path):
    precision = in_integers(4)
    result = export_to(mixtral, tmp_path, precision=precision)
    mlp = {part.part: part.bytes for part in result.lowering.sizes}["MLP"]
    assert mlp < 0.25 * {part.part: part.bytes for part in exported(mixtral).lowering.sizes}["MLP"]
    folder = next(iter(result.folders.values()))
    assert "3 × mixtures of experts in integers" in report.exported(result, open_checkpoint(str(mixtral)))
    assert "3 × QMoE of 4 bits" in report.inspected(folder, result.manifest)
    for tag, status in (("26.05", "problem"), ("26.08", "ok")):
        checks = doctor.examine(tmp_path, images.image(tag), doctor.Machine())
        found = next(each for each in checks if each.what == "operators")
        assert (found.status, "QMoE" in found.why) == (status, True)


def test_experts_without_whole_blocks_stay_as_they_are_and_that_is_said(save, export_to, tmp_path):
    torch.manual_seed(6)
    odd = MixtralConfig(**{**SHAPE, "intermediate_size": 40})
    checkpoint = save(randomized(MixtralForCausalLM(odd)), "mixtral_odd")
    precision = in_integers(8)
    result = export_to(checkpoint, tmp_path, precision=precision)
    said = "the experts of 3 layers: 40 features are not a multiple of 16, the smallest block"
    assert result.lowering.not_quantized == said
    assert said in report.exported(result, open_checkpoint(str(checkpoint)))
    assert said in result.report.read_text()
    assert "3 × MoE in floats" in report.inspected(next(iter(result.folders.values())), result.manifest)


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
