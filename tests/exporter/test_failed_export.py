"""An export that fails says why, and leaves the repository as it was."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from folders import files_of
from gptport import cli, verify
from gptport.checkpoint import open_checkpoint
from gptport.errors import RepositoryError, UsageError, VerificationError
from gptport.precision import by_name


def test_a_configuration_that_cannot_be_read_is_said_before_the_work(gpt2, export_to, tmp_path):
    export_to(gpt2, tmp_path)
    (tmp_path / "gpt2_step" / "config.pbtxt").write_text("no such field: 1")
    before = files_of(tmp_path)
    with pytest.raises(
        RepositoryError, match=r"gpt2_step/config\.pbtxt cannot be read as a model configuration"
    ):
        export_to(gpt2, tmp_path)
    assert files_of(tmp_path) == before


def test_a_graph_that_differs_from_the_checkpoint_is_not_published(gpt2, export_to, tmp_path):
    export_to(gpt2, tmp_path)
    before = files_of(tmp_path)
    with pytest.raises(VerificationError, match=r"differs from the original by .*Nothing was written"):
        export_to(gpt2, tmp_path, precision=replace(by_name("fp32"), tolerance=0.0))
    assert files_of(tmp_path) == before


def test_a_damaged_weight_is_noticed(gpt2, export_to, tmp_path, monkeypatch):
    def damage(self, name):
        tensor = read(self, name)
        return tensor.flip(0) if name == "transformer.h.1.mlp.c_fc.bias" else tensor

    checkpoint_type = type(open_checkpoint(str(gpt2)))
    read = checkpoint_type.tensor
    monkeypatch.setattr(checkpoint_type, "tensor", damage)
    with pytest.raises(VerificationError, match="differs from the original"):
        export_to(gpt2, tmp_path)


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_an_export_that_is_interrupted_leaves_nothing(gpt2, export_to, tmp_path, monkeypatch, failure):
    def interrupt(*_):
        raise failure

    monkeypatch.setattr(verify, "verify", interrupt)
    with pytest.raises(failure):
        export_to(gpt2, tmp_path)
    assert files_of(tmp_path) == {}


def test_a_folder_that_is_no_repository_is_refused(gpt2, export_to, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RepositoryError, match=r"not a model repository: thesis\.txt"):
        export_to(gpt2, tmp_path)
    assert files_of(tmp_path) == {"thesis.txt": b"mine"}


def test_a_file_is_no_repository(gpt2, export_to, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="is a file"):
        export_to(gpt2, tmp_path / "file")


@pytest.mark.parametrize("name", ["a/b", "..", "a..b", "", ".a", "-a", "a b", "é", "a_step", "a" * 101])
def test_names_that_are_no_safe_folder_are_wrong_usage(gpt2, tmp_path, capsys, name):
    code = cli.main(["export", str(gpt2), "--repository", str(tmp_path), f"--name={name}"])
    assert code == 2
    assert "is not allowed" in capsys.readouterr().err
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("length", [-1, 0, 1, 257])
def test_lengths_that_the_checkpoint_does_not_take_are_wrong_usage(gpt2, export_to, tmp_path, length):
    with pytest.raises(
        UsageError, match=rf"--max-length {length} is not allowed: gpt2 takes 2 to 256 tokens"
    ):
        export_to(gpt2, tmp_path, max_length=length)
    assert files_of(tmp_path) == {}


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert cli.main(["export", str(gpt2), "--repository", str(tmp_path / "repository")]) == 1
    assert re.search(
        r"the weights take [\d,]+ bytes, and 1,000 are free on the disk of", capsys.readouterr().err
    )
    assert not list((tmp_path / "repository").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_disk_that_fills_up_leaves_nothing(gpt2, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx_ir.save", full)
    assert cli.main(["export", str(gpt2), "--repository", str(tmp_path / "repository")]) == 1
    assert "No space left on device; nothing was changed" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
