"""What is wrong with a checkpoint is said in one line, before anything is written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from gptport import cli
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError
from gptport.versions import versions


@pytest.fixture
def refused(tmp_path, capsys):
    """Export through the command; its one line of complaint."""

    def export(source, *options, code=1):
        repository = tmp_path / "repository"
        found = cli.main(["export", str(source), "--repository", str(repository), "--name", "any", *options])
        out, err = capsys.readouterr()
        (line,) = [line for line in err.splitlines() if line.startswith("gptport: ")]
        assert (found, out) == (code, "")
        assert "Traceback" not in err
        assert not repository.exists() or not any(repository.iterdir())
        return line

    return export


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


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


def test_a_missing_shard_of_a_pickle(refused, gpt2, copy):
    folder = pickled(copy(gpt2))
    shard = "pytorch_model-00002-of-00002.bin"
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001-of-00002.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"lacks 1 of 1 shards, the first is {shard}" in refused(folder, "--allow-pickle")


@pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {"epoch": 3}])
def test_a_pickle_of_something_else(refused, gpt2, copy, content):
    folder = copy(gpt2)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "is not a dictionary of tensors by name" in refused(folder, "--allow-pickle")


def test_a_pickle_of_an_old_torch(gpt2, copy):
    folder = copy(gpt2)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    name = "transformer.wte.weight"
    found = open_checkpoint(str(folder), allow_pickle=True).tensor(name)
    assert torch.equal(found, tensors[name])


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


def test_no_tokenizer(refused, gpt2, copy):
    folder = copy(gpt2)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert refused(folder) == f"gptport: {folder} has no tokenizer; put its tokenizer.json there"


def test_a_tokenizer_of_sentencepiece_alone(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    wanted = (
        "has no tokenizer.json, and for tokenizer.model transformers needs sentencepiece==0.2.1: pip install"
    )
    assert wanted in refused(folder)


def test_a_damaged_tokenizer(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer" in refused(folder)


def test_a_chat_template_that_is_no_text(refused, gpt2, copy):
    folder = copy(gpt2)
    (folder / "chat_template.jinja").write_bytes("{{ 'é' }}".encode("latin-1"))
    assert "chat_template.jinja is no UTF-8: " in refused(folder)


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


def test_pickled_weights_are_not_read(refused, gpt2, copy):
    assert "pytorch_model.bin" in (line := refused(pickled(copy(gpt2))))
    assert "pass --allow-pickle if you trust its author" in line


def test_pickled_weights_are_read_where_that_is_asked_for(gpt2, copy, tmp_path, capsys):
    repository = tmp_path / "repository"
    command = [
        "export",
        str(pickled(copy(gpt2))),
        "--allow-pickle",
        "--repository",
        str(repository),
        "--name=any",
    ]
    assert cli.main(command) == 0, capsys.readouterr().err
    assert versions(repository / "any") == [1]


def test_a_pickle_that_runs_code_is_not_run_even_then(refused, gpt2, copy, tmp_path):
    class Malice:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",))

    folder = pickled(copy(gpt2))
    torch.save({"transformer.wte.weight": Malice()}, folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(folder, "--allow-pickle")
    assert not (tmp_path / "owned").exists()


def test_code_in_a_checkpoint_is_not_run(refused, gpt2, copy, change_config, tmp_path):
    folder = copy(gpt2)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    change_config(
        folder,
        model_type="mine",
        auto_map={"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    )
    assert "pass --trust-remote-code if you trust its author" in refused(folder)
    assert not (tmp_path / "owned").exists()


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


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["exprot"],
        ["export"],
        ["export", "somewhere", "--max-length", "many"],
        ["export", "somewhere", "--precision", "fp8"],
        ["export", "somewhere", "--name", "a/b"],
        ["sample", "gpt5"],
        ["inspect"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:  # as argparse does
        code = exit_.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_traceback_is_shown_with_debug_only(gpt2, capsys):
    arguments = ["export", str(gpt2 / "config.json")]
    assert cli.main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_installed_command_says_it_too(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "gptport", "export", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"gptport: {tmp_path} is not a checkpoint")
    assert result.stderr.count("\n") == 1
