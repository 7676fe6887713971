"""An export reads every tensor that its checkpoint has for the model, or says which have no effect, or stops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError
from gptport.graph import build
from gptport.precision import by_name

VOCAB = 384
FREQUENCIES = "model.layers.0.self_attn.rotary_emb.inv_freq"


@pytest.fixture
def changed(copy):
    """A copy of a checkpoint with tensors added, changed, or (None) removed."""

    def change(source, tensors):
        folder = copy(source)
        path = folder / "model.safetensors"
        stored = {**load_file(path), **tensors}
        save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, path)
        return folder

    return change


def unread(folder):
    return build(open_checkpoint(str(folder)), by_name("fp32"), 64).unread


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_untied", "llama_of_one_layer"])
def test_a_whole_checkpoint_leaves_nothing_over(name, request):
    assert unread(request.getfixturevalue(name)) == ""


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "layers.2.mlp.up_proj.lora_A.weight",
        "model.layers.0.mlp.up_proj.weight_scale_inv",
        "model.embed_positions.weight",
        "lm_head.bias",
        "model.layers.0.self_attn.sinks.bias",
    ],
)
def test_a_tensor_that_the_architecture_has_no_use_for_stops_the_export(changed, llama, name):
    with pytest.raises(
        CheckpointError, match=f"has {name}, which LlamaForCausalLM does not read.*wrong architecture"
    ):
        unread(changed(llama, {name: torch.ones(4)}))


def test_more_layers_than_the_configuration_has_stop_it(llama, copy, change_config):
    folder = copy(llama)
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"has model\.layers\.2\..* and 6 more.*num_hidden_layers = 2"):
        unread(folder)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"]
)
def test_a_parameter_that_is_not_there_stops_it(changed, llama, name):
    with pytest.raises(CheckpointError, match=f"has no tensor '{name}'"):
        unread(changed(llama, {name: None}))


def test_a_parameter_under_another_name_stops_it(changed, llama):
    weight = load_file(llama / "model.safetensors")["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.norm\.weight'"):
        unread(changed(llama, {"model.norm.weight": None, "model.final_norm.weight": weight}))


def test_a_bias_that_the_checkpoint_lacks_stops_it(changed, save):
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
    )
    folder = save(Qwen2ForCausalLM(config), "qwen2_of_two_layers")
    name = "model.layers.1.self_attn.k_proj.bias"
    with pytest.raises(CheckpointError, match=f"has no tensor '{name}'"):
        unread(changed(folder, {name: None}))


def test_a_copy_of_the_tied_embedding_is_passed_over(changed, llama):
    weight = load_file(llama / "model.safetensors")["model.embed_tokens.weight"]
    assert unread(changed(llama, {"lm_head.weight": weight.clone()})) == "1 copies (lm_head.weight)"


def test_another_head_than_the_tied_embedding_stops_it(changed, llama):
    head = torch.randn(VOCAB, 64)
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight and model\.embed_tokens\.weight.*tie_word_embeddings"
    ):
        unread(changed(llama, {"lm_head.weight": head}))


def test_two_different_tensors_for_one_parameter_stop_it(changed, llama):
    with pytest.raises(CheckpointError, match=r"two tensors for model\.norm\.weight"):
        unread(changed(llama, {"norm.weight": torch.ones(64)}))


@pytest.mark.parametrize(
    ("source", "name", "tensor", "said"),
    [
        ("llama", FREQUENCIES, torch.ones(8), "1 that transformers ignores"),
        (
            "llama",
            "model.layers.0.self_attn.rotary_emb.cos_cached",
            torch.ones(1, 1, 8, 16),
            "1 that transformers ignores",
        ),
        ("gpt2", "transformer.h.0.attn.bias", torch.ones(1, 1, 8, 8), "1 that transformers ignores"),
        ("gpt2", "transformer.h.0.attn.masked_bias", torch.tensor(-1e4), "1 causal masks"),
        ("llama", "model.layers.0.self_attn.q_proj.bias", torch.zeros(64), "1 biases of zeros"),
        ("llama", "v_head.summary.weight", torch.ones(4), "1 of other parts"),
    ],
)
def test_what_is_known_to_be_without_effect_is_passed_over_and_said(
    changed, request, source, name, tensor, said
):
    assert unread(changed(request.getfixturevalue(source), {name: tensor})) == f"{said} ({name})"


@pytest.mark.parametrize("piece", ["3.w1", "7.w2", "0.w3"])
def test_an_expert_without_one_of_its_matrices_stops_it(changed, save, piece):
    config = MixtralConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
    )
    folder = save(MixtralForCausalLM(config), "mixtral_of_two_layers")
    with pytest.raises(CheckpointError, match="experts"):
        unread(changed(folder, {f"model.layers.1.block_sparse_moe.experts.{piece}.weight": None}))


def test_the_last_line_of_the_export_says_it(changed, llama, tmp_path, capsys):
    from gptport import cli

    folder = changed(llama, {FREQUENCIES: torch.ones(8)})
    command = [
        "export",
        str(folder),
        "--repository",
        str(tmp_path / "repository"),
        "--name=any",
        "--max-length=64",
    ]
    assert cli.main(command) == 0
    assert f"1 that transformers ignores ({FREQUENCIES})" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def gguf(tmp_path):
    """Write a Llama of two layers as a GGUF file, with tensors added, or (None) removed."""
    shapes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (64, 64)),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
        "attn_norm": (64,),
        "ffn_norm": (64,),
    }
    layers = {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in shapes.items()}
    whole = {**layers, "token_embd.weight": (VOCAB, 64), "output_norm.weight": (64,)}

    def write(tensors):
        writer = GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.add_block_count(2)
        writer.add_context_length(128)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(4)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(16)
        writer.add_vocab_size(VOCAB)
        for name, tensor in {
            **{name: np.ones(shape, np.float32) for name, shape in whole.items()},
            **tensors,
        }.items():
            if tensor is not None:
                writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path

    return write


def test_a_gguf_file_is_read_whole(gguf):
    assert unread(gguf({})) == ""
    assert unread(gguf({"rope_freqs.weight": np.ones(8, np.float32)})) == "1 of ones (rope_freqs.weight)"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("rope_freqs.weight", np.linspace(1, 8, 8, dtype=np.float32)),
        ("blk.1.attn_q_norm.weight", np.ones(16, np.float32)),
        ("blk.0.attn_q.bias", np.ones(64, np.float32)),
    ],
)
def test_a_tensor_of_a_gguf_file_that_transformers_passes_over_stops_the_export(gguf, name, tensor):
    with pytest.raises(CheckpointError, match=f"has {name}, which LlamaForCausalLM does not read"):
        unread(gguf({name: tensor}))


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("output_norm.weight", "model.norm.weight"),
        ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_tensor_that_a_gguf_file_lacks_is_not_made_up(gguf, name, parameter):
    with pytest.raises(CheckpointError, match=f"has no tensor for '{parameter}'"):
        unread(gguf({name: None}))
