"""Pickles are read where that is asked for, and no code in a checkpoint is run unawares."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from gptport import cli
from gptport.checkpoint import open_checkpoint
from gptport.versions import versions


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


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
