"""What is fetched of a checkpoint on the hub follows the options; the hub here is a folder."""

from __future__ import annotations

import shutil

import pytest
from huggingface_hub.utils import filter_repo_objects

from gptport.errors import CheckpointError
from gptport.locate import locate

FILES = ("config.json", "modeling_any.py", "pytorch_model.bin", "model.onnx")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository on a hub; its files are fetched into another folder if they match the patterns."""
    repository, fetched = tmp_path / "hub", tmp_path / "fetched"
    repository.mkdir()
    fetched.mkdir()
    for name in FILES:
        (repository / name).write_text("{}")

    def download(_, allow_patterns):
        names = [path.name for path in repository.iterdir()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            shutil.copy(repository / name, fetched)
        return str(fetched)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr(
        "huggingface_hub.list_repo_files", lambda _: [path.name for path in repository.iterdir()]
    )
    return repository


def names(location):
    return {path.name for path in location.directory.iterdir()}


def test_neither_code_nor_pickles_are_fetched_unless_that_is_asked_for(hub):
    (hub / "model.safetensors").write_text("")
    assert names(locate("any/model")) == {"config.json", "model.safetensors"}


def test_code_is_fetched_where_it_is_trusted(hub):
    (hub / "model.safetensors").write_text("")
    found = names(locate("any/model", trust_remote_code=True))
    assert found == {"config.json", "model.safetensors", "modeling_any.py"}


@pytest.mark.usefixtures("hub")
def test_a_pickle_is_fetched_where_it_is_allowed_and_needed():
    assert locate("any/model", allow_pickle=True).format == "pickle"


def test_a_pickle_beside_safetensors_is_not_fetched(hub):
    (hub / "model.safetensors").write_text("")
    location = locate("any/model", allow_pickle=True)
    assert location.format == "safetensors"
    assert "pytorch_model.bin" not in names(location)


@pytest.mark.usefixtures("hub")
def test_pickles_alone_are_refused_with_the_option_that_takes_them():
    with pytest.raises(CheckpointError, match=r"any/model .* \(pytorch_model\.bin\), .* --allow-pickle"):
        locate("any/model")


def test_gguf_files_alone_are_refused_with_what_to_do(hub):
    (hub / "pytorch_model.bin").rename(hub / "model.q4.gguf")
    with pytest.raises(CheckpointError, match=r"any/model .* \(model\.q4\.gguf\); fetch one such file"):
        locate("any/model")


def test_no_weights(hub):
    (hub / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        locate("any/model")
