"""A model whose products are by rows: what a sequence gives does not depend on the others, and CPUs that cannot are refused."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from conftest import Served
from gptport.checkpoint import open_checkpoint
from gptport.console import Steps
from gptport.export import export
from gptport.precision import chosen
from gptport.processor import VNNI, missing
from gptport.samples import sample
from gptport_backend import manifest as manifests
from gptport_backend import processor
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import LoadError
from gptport_backend.runner import Runner, RunnerOptions

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = ("one", "the second of them, which is longer than the others", "3", "and four", "five five five")


@pytest.fixture(scope="module")
def by_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version folder."""
    if missing(VNNI):
        pytest.skip("this CPU's products by rows are wrong")
    folder = tmp_path_factory.mktemp("by_rows")
    source = open_checkpoint(str(sample("gpt2-tiny", folder / "gpt2", Steps())))
    precision = chosen("int8", algorithm="smoothquant")
    return export(source, folder / "repository", "tiny", precision, None, Steps()).folders["tiny"]


@pytest.mark.parametrize("max_batch_size", [2, 8])
def test_a_sampled_text_is_the_same_alone_and_beside_others(by_rows: Path, max_batch_size: int) -> None:
    asked: dict[str, Any] = {"temperature": 1.3, "max_tokens": 40, "ignore_eos": True, "logprobs": 2}
    served = Served(by_rows, EngineOptions(max_batch_size=max_batch_size, prefix_cache_bytes=0))
    alone = [served.ask(text_input=text, seed=seed, **asked).wait() for seed, text in enumerate(PROMPTS)]
    together = [served.ask(text_input=text, seed=seed, **asked) for seed, text in enumerate(PROMPTS)]
    for one, other in zip(alone, together, strict=True):
        assert one.error == other.wait().error == ""
        assert len(one.token_ids) == 40
        assert other.token_ids == one.token_ids
        assert [piece.logprobs for piece in other.pieces] == [piece.logprobs for piece in one.pieces]
    served.engine.close(0)


@pytest.fixture
def needing_vnni(version_dir: Path, tmp_path: Path) -> Path:
    """A version folder whose manifest asks for VNNI."""
    folder = shutil.copytree(version_dir, tmp_path / "1")
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cpu_flags": ["avx512_vnni", "avx_vnni"]}))
    return folder


def load(folder: Path, device: str = "cpu") -> None:
    Runner(manifests.read(folder), folder, RunnerOptions(device, threads=1), max_slots=1)


def test_a_cpu_that_lacks_what_the_model_needs_is_refused(
    needing_vnni: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "INFO", info)
    for flag in ("avx512_vnni", "avx_vnni"):
        info.write_text(f"flags\t\t: fpu sse2 {flag} avx2\n")
        load(needing_vnni)
    for content in ("flags\t\t: fpu sse2 avx2 avx512f\n", "Features\t: asimddp\n"):
        info.write_text(content)
        with pytest.raises(LoadError, match=r"for CPUs with avx512_vnni or avx_vnni; .* --quantization rtn"):
            load(needing_vnni)


def test_a_gpu_is_refused(needing_vnni: Path) -> None:
    with pytest.raises(
        LoadError, match=r"on the CPU only, not on cuda: set KIND_CPU .* or export it in fp16"
    ):
        load(needing_vnni, "cuda")


def test_other_models_ask_nothing_of_the_cpu(version_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "INFO", None)
    load(version_dir)
