"""The manifest: what is written is what is read, and what is not ours is not read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gptport import cli, manifest
from gptport.errors import RepositoryError

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "manifest.md"


@pytest.fixture
def version(checkpoint, exported):
    """A version folder, not to be changed."""
    return exported(checkpoint).folders[checkpoint.name]


@pytest.fixture
def damaged(version, tmp_path):
    """Write a manifest that was changed; its folder."""

    def write(change):
        document = json.loads((version / "manifest.json").read_text())
        change(document)
        (tmp_path / "manifest.json").write_text(json.dumps(document))
        return tmp_path

    return write


def test_what_is_read_is_what_was_written(version, checkpoint, exported):
    read = manifest.read(version)
    assert read == exported(checkpoint).manifest
    assert read.to_json() == (version / "manifest.json").read_text()


def test_the_manifest_has_the_fields_of_the_documentation(version):
    documented = json.loads(re.search(r"```json\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)[1])
    written = json.loads((version / "manifest.json").read_text())
    assert written.keys() == documented.keys()
    for field in ("tokens", "kv_cache", "source", "verification"):
        assert written[field].keys() == documented[field].keys(), field
    for field in ("inputs", "outputs"):
        assert written[field][0].keys() == documented[field][0].keys(), field
    assert written["kv_cache"]["tensors"][0].keys() == documented["kv_cache"]["tensors"][0].keys()
    assert documented["tools"].keys() <= written["tools"].keys()
    assert set(written["roles"]) == set(documented["roles"])


def test_it_says_where_the_model_comes_from_and_how_exact_it_is(version, checkpoint):
    read = manifest.read(version)
    model_type = {"gpt2": "gpt2", "llama": "llama"}[checkpoint.name]
    assert read.source["checkpoint"] == checkpoint.name
    assert read.source["model_type"] == model_type
    assert read.source["format"] == "safetensors"
    assert re.fullmatch("[0-9a-f]{64}", read.source["sha256"])
    assert read.verification["tokens"] > 30
    assert 0 < read.verification["max_abs_logit_difference"] < 1e-2
    assert read.verification["greedy_agreement"] == 1.0


def test_the_cache_is_that_of_the_model(version, checkpoint):
    cache = manifest.read(version).kv_cache
    assert (cache.layers, cache.kv_heads, cache.head_dim) == (3, {"gpt2": 4, "llama": 2}[checkpoint.name], 16)
    assert [(tensor.layer, tensor.kind) for tensor in cache.tensors[:3]] == [
        (0, "key"),
        (0, "value"),
        (1, "key"),
    ]


def test_another_schema_is_refused(damaged):
    folder = damaged(lambda document: document.update(schema_version=2))
    with pytest.raises(RepositoryError, match=r"has schema 2, this gptport reads 1; export again"):
        manifest.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("kv_cache"),
        lambda document: document.pop("schema_version"),
        lambda document: document.update(surprise=1),
        lambda document: document.update(files=3),
        lambda document: document["kv_cache"].pop("head_dim"),
        lambda document: document["inputs"][0].pop("shape"),
        lambda document: document.update(tokens=None),
    ],
    ids=["no cache", "no schema", "unknown field", "files", "no head_dim", "no shape", "no tokens"],
)
def test_a_manifest_of_another_form_is_damaged(damaged, change):
    with pytest.raises(RepositoryError, match=r"manifest\.json is damaged.*; export again"):
        manifest.read(damaged(change))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"schema_version": 1'])
def test_what_is_no_manifest_at_all_is_damaged(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RepositoryError, match=r"manifest\.json is damaged"):
        manifest.read(tmp_path)


def test_a_folder_without_a_manifest_is_not_ours(tmp_path):
    with pytest.raises(RepositoryError, match="was not written by gptport"):
        manifest.read(tmp_path)


class TestInspect:
    """`gptport inspect` shows the manifest of a model's latest version, or of the version that is named."""

    def test_a_model(self, version, capsys):
        assert cli.main(["inspect", str(version.parent)]) == 0
        said = capsys.readouterr().out
        assert str(version) in said
        assert "3 layers ×" in said
        assert "sha256" in said

    def test_a_step_model(self, checkpoint, exported, capsys):
        step = exported(checkpoint).folders[f"{checkpoint.name}_step"]
        assert cli.main(["inspect", str(step.parent)]) == 0
        assert "input_ids int64 [batch, sequence]" in capsys.readouterr().out

    def test_as_json(self, version, capsys):
        assert cli.main(["inspect", str(version), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == json.loads((version / "manifest.json").read_text())

    def test_the_latest_version(self, gpt2, export_to, tmp_path, capsys):
        export_to(gpt2, tmp_path)
        export_to(gpt2, tmp_path, max_length=99)
        cli.main(["inspect", str(tmp_path / "gpt2")])
        assert "99 tokens" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("path", "message"),
        [("nowhere", "is not there"), (".", "has no version folder")],
        ids=["nowhere", "empty"],
    )
    def test_what_is_no_model(self, tmp_path, capsys, path, message):
        assert cli.main(["inspect", str(tmp_path / path)]) == 1
        assert message in capsys.readouterr().err

    def test_a_repository_is_told_from_its_models(self, version, checkpoint, capsys):
        repository = version.parent.parent
        assert cli.main(["inspect", str(repository)]) == 1
        said = capsys.readouterr().err
        assert f"{repository} is a repository; give one of its models: " in said
        assert str(repository / checkpoint.name) in said
