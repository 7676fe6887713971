"""`gptport doctor` says what of a repository does not fit an image, and what no source tells."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

from gptport import cli, doctor, images, manifest, passes
from gptport.errors import UsageError
from gptport.precision import by_name

MACHINE = doctor.Machine(memory=8 << 30, compute_capability="8.0")


@pytest.fixture(scope="module")
def quantized(gpt2, export_to, tmp_path_factory):
    """A repository with a model in int4."""
    folder = tmp_path_factory.mktemp("quantized")
    export_to(gpt2, folder, precision=replace(by_name("int4"), max_perplexity_increase=9.0))
    return folder


@pytest.fixture
def repository(exported, gpt2, tmp_path):
    """A repository with one model, which may be changed."""
    source = exported(gpt2).folders["gpt2"].parents[1]
    for name in ("gpt2", "gpt2_step"):
        shutil.copytree(source / name, tmp_path / name, symlinks=True)
    return tmp_path


def examined(repository, tag="26.08", machine=MACHINE):
    """(model, what) → status and reason."""
    checks = doctor.examine(repository, images.image(tag), machine)
    return {(check.model, check.what): (check.status, check.why) for check in checks}


def edit(repository, name, before, after):
    path = repository / name / "config.pbtxt"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def test_a_model_in_fp32_fits_the_newest_image_and_an_old_one(repository):
    for tag in ("26.08", "24.10"):
        found = examined(repository, tag)
        assert [key for key, (status, _) in found.items() if status == "problem"] == []
        assert found["gpt2", "opset"][0] == "ok"
        assert found["gpt2", "operators"] == ("ok", "FastGelu, GroupQueryAttention, SkipLayerNormalization")


def test_nvidias_image_lacks_the_backend_of_the_text_model_and_has_that_of_the_step_model(repository):
    found = examined(repository)
    assert found["gpt2", "backend"][0] == "unknown"
    assert found["gpt2_step", "backend"] == ("ok", "onnxruntime is part of the image")


@pytest.mark.parametrize(
    ("tag", "status"),
    [("24.10", "problem"), ("25.02", "problem"), ("26.05", "ok"), ("26.08", "ok"), ("26.09", "ok")],
)
def test_int4_embeddings_need_an_operator_that_old_images_lack(quantized, tag, status):
    """As tried: onnxruntime 1.19.2 and 1.20.1 refuse this graph, 1.23.1 and later run it."""
    found, why = examined(quantized, tag)["gpt2", "operators"]
    assert found == status
    assert ("GatherBlockQuantized as used here needs onnxruntime 1.23.1" in why) == (status == "problem")


def test_a_graph_of_a_newer_opset_does_not_fit(repository):
    path = repository / "gpt2" / "1" / "model.onnx"
    graph = onnx.load(path, load_external_data=False)
    next(each for each in graph.opset_import if not each.domain).version = 24
    graph.ir_version = 13
    path.write_bytes(graph.SerializeToString())
    found = examined(repository, "24.10")
    assert found["gpt2", "opset"] == ("problem", "24; onnxruntime 1.19.2 loads up to 21")
    assert found["gpt2", "IR version"] == ("problem", "13; onnxruntime 1.19.2 loads up to 10")
    assert found["gpt2", "files"][0] == "problem", "it is not as the manifest says, either"


def test_what_no_source_says_is_unknown(repository):
    assert examined(repository, "25.08")["gpt2", "onnxruntime"][0] == "unknown"


def test_float32_on_a_gpu_is_a_problem(repository):
    edit(repository, "gpt2_step", "KIND_CPU", "KIND_GPU")
    found = examined(repository)
    assert found["gpt2_step", "dtype"][0] == "problem"
    assert found["gpt2", "dtype"] == ("ok", "float32 on KIND_CPU")


@pytest.mark.parametrize(
    ("there", "status"), [("7.0", "problem"), ("8.0", "ok"), ("12.0", "ok"), (None, "unknown")]
)
def test_a_gpu_needs_the_compute_capability_of_the_image(repository, there, status):
    edit(repository, "gpt2", "KIND_CPU", "KIND_AUTO")
    found = examined(repository, machine=doctor.Machine(compute_capability=there))
    assert found["gpt2", "GPU"][0] == status
    assert found["gpt2_step", "GPU"] == ("ok", "not used")


def test_memory_is_that_of_weights_and_the_caches_of_all_sequences(repository):
    known = manifest.read(repository / "gpt2" / "1")
    weights = sum(file.bytes for file in known.files.values())
    cache = (
        2 * known.kv_cache.layers * known.kv_cache.kv_heads * known.kv_cache.head_dim * 4 * known.max_length
    )
    for sequences, name in ((32, "gpt2"), (64, "gpt2_step")):
        needed = weights + sequences * cache
        for there, status in ((needed, "ok"), (needed - 1, "problem")):
            assert examined(repository, machine=doctor.Machine(memory=there))[name, "memory"][0] == status
    edit(repository, "gpt2", "KIND_CPU", "KIND_AUTO")
    assert examined(repository, machine=doctor.Machine())["gpt2", "memory"][0] == "unknown"


def test_damage_is_named(repository):
    (repository / "gpt2" / "1" / "tokenizer.json").unlink()
    status, why = examined(repository)["gpt2", "files"]
    assert status == "problem"
    assert "tokenizer.json is missing" in why


def test_the_command_tells_the_sources_and_fails_on_a_problem(repository, quantized, capsys):
    assert cli.main(["doctor", str(repository), "--image", "26.08-py3"]) == 0
    out = capsys.readouterr().out
    assert "1.28.0 in 26.08-py3" in out
    assert "release-notes/rel-26-08.html" in out
    assert cli.main(["doctor", str(quantized), "--image", "24.10", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["image"]["onnxruntime"] == "1.19.2"
    assert "problem" in {check["status"] for check in document["checks"]}


def test_an_image_that_is_not_known(capsys, repository):
    with pytest.raises(UsageError, match=r"--image 19\.01 is not one of 24\.10-py3, "):
        images.image("19.01")
    assert cli.main(["doctor", str(repository), "--image", "19.01"]) == 2
    assert "is not one of" in capsys.readouterr().err


class TestTable:
    """images.toml: nothing without a source."""

    table = tomllib.loads(resources.files("gptport").joinpath("images.toml").read_text())

    def test_every_image_has_its_sources(self):
        for tag, entry in self.table["images"].items():
            assert entry["sources"], tag
            assert all(source.startswith("https://") for source in entry["sources"])

    def test_it_knows_the_onnxruntime_of_every_image_and_every_operator_that_is_written(self):
        for tag in self.table["images"]:
            found = images.image(tag)
            assert found.onnxruntime is None or images.limits(found.onnxruntime) is not None
        dialect = Path(passes.__file__).parent
        sources = [*dialect.glob("*.py"), *(dialect.parent / "dialects").glob("*.py")]
        schemas = onnxruntime_pybind11_state.get_all_operator_schema()
        contributed = {each.name for each in schemas if each.domain == "com.microsoft"}
        written = {
            name for path in sources for name in re.findall(r'"(\w+)"', path.read_text())
        } & contributed
        standard = {each.name for each in schemas if each.domain in ("", "ai.onnx")}
        assert written - standard - self.table["operators"].keys() == set()
        assert {"GroupQueryAttention", "MatMulNBits"} <= written
