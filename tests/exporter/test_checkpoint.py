"""What is wrong with a checkpoint is said in one line, before anything is written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from gptport import cli
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError


def test_a_folder_without_weights(refused, tmp_path):
    assert "is not a checkpoint: it has no *.safetensors and no *.gguf file" in refused(tmp_path)


def test_a_file_instead_of_its_folder(refused, gpt2):
    assert "is a file; give the directory that it is in" in refused(gpt2 / "model.safetensors")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "a b", "x/y/z", ".."])
def test_no_folder_at_all(refused, source):
    line = refused(source)
    assert "is not a directory" in line or "is not a checkpoint" in line


@pytest.mark.parametrize("source", ["openai-community/gpt2", "distilgpt2"])
def test_a_hub_id_where_there_is_no_hub(refused, source):
    assert f"{source} is not a directory, and the hub cannot be reached" in refused(source)


def test_no_configuration(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "config.json").unlink()
    assert "has no config.json" in refused(folder)


def test_a_damaged_configuration(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "config.json").write_text("{")
    assert "has a configuration that cannot be read" in refused(folder)


def test_an_unknown_architecture(refused, gpt2, copy, change_config):
    folder = copy(gpt2)
    change_config(folder, model_type="gpt9", architectures=["GPT9"])
    assert "does not know this architecture" in refused(folder)


@pytest.mark.parametrize("entry", ["n_layer", "n_head", "n_embd", "vocab_size", "n_positions"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_size_that_is_none(refused, gpt2, copy, change_config, entry, value):
    folder = copy(gpt2)
    change_config(folder, **{entry: value})
    assert f"= {value}; a GPT has a positive number there" in refused(folder)


def test_a_configuration_for_other_weights(refused, gpt2, copy, change_config):
    folder = copy(gpt2)
    change_config(folder, n_layer=5)
    assert "has no tensor 'transformer.h.3." in refused(folder)


def test_weights_of_another_shape(refused, gpt2, copy, change_config):
    folder = copy(gpt2)
    change_config(folder, n_embd=32)
    line = refused(folder)
    assert "shape" in line


def test_heads_of_a_width_that_the_kernel_does_not_take(refused, save):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 20, "intermediate_size": 96}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=2, vocab_size=384))
    folder = save(model, "llama_of_odd_heads")
    assert "the model has heads of 20 features" in refused(folder)


def test_a_model_with_an_encoder(refused, gpt2, checkpoints):
    config = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    folder = checkpoints / "t5"
    T5ForConditionalGeneration(config).save_pretrained(folder)
    shutil.copy(gpt2 / "tokenizer.json", folder)
    assert "t5 has an encoder; gptport exports decoder-only models" in refused(folder)


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_a_damaged_generation_configuration(refused, gpt2, copy, content):
    folder = copy(gpt2)
    (folder / "generation_config.json").write_text(content)
    assert "generation_config.json is no JSON object" in refused(folder)


@pytest.mark.parametrize("value", ["</s>", [1, None], [[1]], 1.5, True])
def test_an_end_of_text_that_is_no_id(refused, gpt2, copy, value):
    folder = copy(gpt2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert f"the model has eos_token_id = {value!r}; expected the id of the token" in refused(folder)


def test_ends_of_text_that_there_are_no_logits_for_are_left_out(gpt2, copy):
    folder = copy(gpt2)
    content = {"eos_token_id": [5, 384, -1, 3], "early_stopping": "what transformers refuses"}
    (folder / "generation_config.json").write_text(json.dumps(content))
    assert open_checkpoint(str(folder)).spec.eos_token_ids == (5, 3)


def test_weights_that_are_not_numbers(refused, gpt2, copy):
    folder = copy(gpt2)
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.1.mlp.c_fc.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert "the checkpoint itself gives logits that are not numbers" in refused(folder)


def test_a_safetensors_file_of_another_name(gpt2, copy, tmp_path):
    folder = copy(gpt2)
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    arguments = ["export", str(folder), "--name", "any", "--repository", str(tmp_path / "repository")]
    assert cli.main(arguments) == 0


def test_a_missing_shard(refused, llama_sharded, copy):
    folder = copy(llama_sharded)
    first = min(folder.glob("*.safetensors"))
    first.unlink()
    assert f"shards, the first is {first.name}; fetch it again" in refused(folder)


def test_a_damaged_index(refused, llama_sharded, copy):
    folder = copy(llama_sharded)
    (folder / "model.safetensors.index.json").write_text('{"weight_map"')
    assert "model.safetensors.index.json" in refused(folder)


@pytest.mark.parametrize("keep", [0, 4, 1000, 500_000])
def test_a_truncated_file(refused, gpt2, copy, keep):
    weights = copy(gpt2) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "model.safetensors is not a whole safetensors file" in refused(weights.parent)


def test_a_file_that_is_no_gguf(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF, or so it says")
    assert "model.gguf" in refused(folder)


def test_two_gguf_files(refused, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    assert "has 2 GGUF files; keep the one to export" in refused(tmp_path)


def test_a_pointer_of_git_lfs_in_place_of_the_weights(refused, gpt2, copy):
    folder = copy(gpt2)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 548105171\n"
    (folder / "model.safetensors").write_text(pointer)
    line = refused(folder)
    assert "model.safetensors is a pointer of Git LFS" in line
    assert "git lfs pull" in line


@pytest.mark.parametrize("options", [("--precision", "bf16"), ("--precision", "int4", "--compute", "bf16")])
def test_adapters_in_bfloat16(refused, gpt2, options):
    line = refused(gpt2, "--lora", *options, code=2)
    assert "--lora does not go with bfloat16" in line


def test_names_with_and_without_the_base_models_prefix_are_found(llama):
    checkpoint = open_checkpoint(str(llama))
    with_prefix = checkpoint.tensor("model.norm.weight")
    assert torch.equal(checkpoint.tensor("norm.weight"), with_prefix)
    assert "model.norm.weight" in checkpoint
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(CheckpointError, match=r"has no tensor 'lm_head\.weight'"):
        checkpoint.tensor("lm_head.weight")


def test_several_end_tokens_come_from_the_generation_configuration(gpt2, copy):
    folder = copy(gpt2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert open_checkpoint(str(folder)).spec.eos_token_ids == (0, 7)


def test_a_checkpoint_is_known_by_its_content(gpt2, copy):
    folder = copy(gpt2)
    before = open_checkpoint(str(folder)).sha256.result()
    assert before == open_checkpoint(str(gpt2)).sha256.result()
    content = np.fromfile(folder / "model.safetensors", np.uint8)
    content[-1] ^= 1
    content.tofile(folder / "model.safetensors")
    assert open_checkpoint(str(folder)).sha256.result() != before
