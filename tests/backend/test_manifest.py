"""A model directory that is not as the manifest says is refused with the name of what is wrong."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from gptport_backend import manifest as manifests
from gptport_backend.errors import LoadError
from gptport_backend.runner import Runner, RunnerOptions

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def own_dir(version_dir: Path, tmp_path: Path) -> Path:
    """A version directory to be damaged."""
    return shutil.copytree(version_dir, tmp_path / "1")


def change(directory: Path, **fields: Any) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_directory_is_accepted(version_dir: Path) -> None:
    manifest = manifests.read(version_dir)
    manifests.verify_files(manifest, version_dir)
    assert manifest.tensor("seqlens_k").dtype == "int32"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 2}, "has schema_version 2; this backend reads 1"),
        ({"logits": "all"}, "has logits 'all'; the backend gptport needs 'last'"),
        ({"roles": {"input_ids": "input_ids"}}, "lacks or misstates 'position_ids'"),
        ({"files": {}}, "has no sha256 of the graph 'model.onnx'"),
        ({"files": {"../x": {"bytes": 1, "sha256": ""}}}, "names the file '../x' outside of its directory"),
        ({"outputs": []}, "names the tensor 'logits' without declaring it"),
        ({"vocab_size": None}, "lacks or misstates"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(own_dir: Path, fields: dict[str, Any], message: str) -> None:
    change(own_dir, **fields)
    with pytest.raises(LoadError) as raised:
        manifests.read(own_dir)
    assert message in str(raised.value)


def test_no_manifest_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"manifest\.json cannot be read \(No such file or directory\)"):
        manifests.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LoadError, match="is not JSON"):
        manifests.read(tmp_path)


def test_a_damaged_file_is_named(own_dir: Path) -> None:
    content = bytearray((own_dir / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (own_dir / "model.onnx").write_bytes(content)
    with pytest.raises(LoadError, match=r"model\.onnx is damaged: its sha256 is"):
        manifests.verify_files(manifests.read(own_dir), own_dir)


def test_damage_is_named_whatever_onnxruntime_makes_of_it(own_dir: Path) -> None:
    manifest = manifests.read(own_dir)
    (own_dir / "model.onnx").write_bytes(bytes((own_dir / "model.onnx").stat().st_size))
    with (
        pytest.raises(LoadError, match=r"model\.onnx is damaged: its sha256 is"),
        manifests.verifying(manifest, own_dir),
    ):
        Runner(manifest, own_dir, RunnerOptions(), 1)


def test_files_that_are_whole_let_the_error_of_the_body_through(version_dir: Path) -> None:
    manifest = manifests.read(version_dir)
    with pytest.raises(LoadError, match="configured for cuda"), manifests.verifying(manifest, version_dir):
        Runner(manifest, version_dir, RunnerOptions(device="cuda"), 1)


def test_a_short_or_missing_file_is_named(own_dir: Path) -> None:
    manifest = manifests.read(own_dir)
    (own_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"tokenizer\.json has 2 bytes, the manifest says"):
        manifests.verify_files(manifest, own_dir)
    (own_dir / "tokenizer.json").unlink()
    with pytest.raises(LoadError, match=r"tokenizer\.json is missing"):
        manifests.verify_files(manifest, own_dir)


def test_a_graph_with_other_inputs_is_refused(own_dir: Path) -> None:
    document = json.loads((own_dir / "manifest.json").read_text())
    document["kv_cache"]["tensors"].pop()
    change(own_dir, kv_cache=document["kv_cache"])
    with pytest.raises(LoadError, match=r"not those of the manifest: past_key_values\.1\.value"):
        Runner(manifests.read(own_dir), own_dir, RunnerOptions(), 1)


def test_a_graph_that_cannot_be_loaded_says_why(own_dir: Path) -> None:
    (own_dir / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(LoadError, match=r"onnxruntime .* cannot load .*model\.onnx"):
        Runner(manifests.read(own_dir), own_dir, RunnerOptions(), 1)


def test_bfloat16_is_refused_on_a_cpu(own_dir: Path) -> None:
    document = json.loads((own_dir / "manifest.json").read_text())
    change(own_dir, kv_cache={**document["kv_cache"], "dtype": "bfloat16"})
    with pytest.raises(LoadError, match="bfloat16, which onnxruntime does on CUDA only: set KIND_GPU"):
        Runner(manifests.read(own_dir), own_dir, RunnerOptions(), 1)


def test_an_older_export_draws_on_the_host(own_dir: Path) -> None:
    document = json.loads((own_dir / "manifest.json").read_text())
    del document["sampler"]
    (own_dir / "manifest.json").write_text(json.dumps(document))
    Runner(manifests.read(own_dir), own_dir, RunnerOptions(), 1)
    with pytest.raises(LoadError, match="was exported before there was one: export it again, or set host"):
        Runner(manifests.read(own_dir), own_dir, RunnerOptions(sampler="graph"), 1)


def test_a_device_that_is_not_there_is_said(version_dir: Path) -> None:
    with pytest.raises(LoadError, match="configured for cuda, but this onnxruntime"):
        Runner(manifests.read(version_dir), version_dir, RunnerOptions(device="cuda"), 1)
