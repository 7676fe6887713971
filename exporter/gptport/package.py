"""The way of an ONNX directory that another exporter wrote: recognise it, give its graph our inputs, compare the two, publish.

Nothing is quantized, and no checkpoint is needed: weights are copied as they are, and the original graph says what is right. A
graph whose cache grows is copied as it is, and becomes a step model alone.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from . import (
    description,
    foreign_graph,
    foreign_layers,
    genai,
    growing,
    parts,
    report_page,
    rewire,
    sampling_graph,
    triton_config,
    verify,
)
from . import export as exports
from . import repository as repositories
from .errors import RepositoryError, UsageError
from .foreign_precision import precision_of
from .reference import Reference, beginning, evaluation_text
from .versions import served

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from numpy.typing import NDArray

    from .console import Steps
    from .manifest import File, Manifest
    from .onnx_directory import OnnxDirectory
    from .precision import Precision

_ADVICE = ". Nothing was written"


@dataclass(frozen=True)
class Packaged:
    """What was written.

    Attributes:
        folders: model name → version folder, the text model first, if there is one.
        manifest: of all.
        parity: how close the packaged graph is to the original one.
    """

    folders: dict[str, Path]
    manifest: Manifest
    parity: verify.Parity

    @property
    def report(self) -> Path:
        """The page that says all of this."""
        return next(iter(self.folders.values())) / report_page.FILE_NAME


def package(
    source: OnnxDirectory,
    repository: Path,
    name: str,
    max_length: int | None,
    steps: Steps,
    evaluation: Path | None = None,
    keep: int | None = None,
    serving: triton_config.Serving | None = None,
    command: str = "gptport.package.package",
) -> Packaged:
    """Package a directory as the model `name` and its step models; the arguments are those of `export`.

    Raises:
        GptportError: what is wrong; the repository is as it was.
    """
    name = repositories.checked_name(name)
    for suffix in ("", *repositories.STEP_SUFFIXES):
        served(repository / (name + suffix))  # a configuration that cannot be read is said before the work
    graph, spec = source.graph, source.spec
    foreign_graph.check(graph, spec)
    precision = precision_of(graph)
    serving = serving or triton_config.Serving()
    if graph.grows:
        _check_growing(repository, name, serving)
    else:
        serving.check(precision.dtype_name)
    most = min(spec.context_length, rewire.table_length(graph) or spec.context_length)
    length = exports.chosen_length(source.name, most, max_length)
    text = evaluation_text(evaluation)
    with repositories.staging(repository) as staging, ThreadPoolExecutor() as background:
        folder = staging / "version"
        folder.mkdir()
        tokenizer = source.tokenizer_files()
        ids = beginning(tokenizer["tokenizer.json"], text, spec.vocab_size, length)
        make = _growing if graph.grows else _fixed
        job = _Job(source, name, precision, length, ids, folder, tokenizer, steps, background)
        manifest, model, files, parity = make(job)
        with steps.step("Publishing"):
            manifest = description.measured(manifest, source, source.sha256.result(), files.result(), parity)
            layers = foreign_layers.examined(model, spec.layers)
            facts = report_page.PackagedFacts(
                manifest, spec, parity, precision, command, graph.path.name, layers
            )
            manifest = exports.finished(manifest, folder, report_page.packaged(facts))
            publish = _published_growing if graph.grows else exports.published
            folders = publish(repository, folder, manifest, keep, serving)
    return Packaged(folders, manifest, parity)


@dataclass(frozen=True)
class _Job:
    """What is packaged, into which folder."""

    source: OnnxDirectory
    name: str
    precision: Precision
    length: int
    ids: NDArray[np.int64]
    folder: Path
    tokenizer: dict[str, bytes]
    steps: Steps
    background: Executor


# The manifest, the graph, the files and the parity.
_Made = tuple["Manifest", ir.Model, "Future[dict[str, File]]", verify.Parity]


def _fixed(job: _Job) -> _Made:
    """A graph with our inputs, compared with the original one."""
    graph, folder = job.source.graph, job.folder
    asked = tuple(graph.inputs)
    ours = rewire.rewired(graph, job.source.spec)
    manifest = description.described(ours, job.source, job.name, job.precision, job.length)
    _copy(graph.weights_files, job)
    _saved(ours, folder)
    genai.write(folder, manifest)
    sampling_graph.write(folder, manifest)
    files = job.background.submit(exports.hashed, folder)
    with job.steps.step("Running the original graph"):
        logits = _logits(graph.path, asked, manifest, job.ids)
        expected = Reference(job.ids, logits, np.zeros((0, job.ids.shape[1], 0), np.float32))
    with job.steps.step("Comparing the packaged graph with it"):
        parity = verify.verify(folder, manifest, expected, job.precision, advice=_ADVICE)
    return manifest, ours, files, parity


def _growing(job: _Job) -> _Made:
    """The graph as it is, compared with itself: its cache must make no difference."""
    manifest = growing.described(job.source, job.name, job.precision, job.length)
    _copy([job.source.graph.path, *job.source.graph.weights_files], job)
    files = job.background.submit(exports.hashed, job.folder)
    with job.steps.step("Running the graph without its cache"):
        expected = growing.reference(job.folder, manifest, job.ids)
    with job.steps.step("Comparing it with its cache"):
        parity = growing.compare(job.folder, manifest, expected, job.precision, advice=_ADVICE)
    return manifest, job.source.graph.model, files, parity


def _check_growing(repository: Path, name: str, serving: triton_config.Serving) -> None:
    """Whether the step model of a graph whose cache grows can have that name and be served so."""
    if serving.step_cache != "server":
        raise UsageError(
            f"--step-cache {serving.step_cache} is for a cache of fixed size; this graph's cache grows, and the client sends it"
        )
    if (repository / name).is_dir():
        raise RepositoryError(
            f"{repository / name} is there, with a cache of fixed size; this graph's cache grows, and its {name}_step would take "
            "the place of the other: choose another --name"
        )


def _published_growing(
    repository: Path, folder: Path, manifest: Manifest, keep: int | None, serving: triton_config.Serving
) -> dict[str, Path]:
    """Put the version in place as NAME_step; model name → version folder."""
    step = manifest.name + repositories.STEP_SUFFIX
    config = partial(triton_config.growing_model, manifest, step, serving=serving)
    return repositories.publish(repository, folder, {step: config}, keep)


def _copy(paths: Sequence[Path], job: _Job) -> None:
    """Copy files and write the tokenizer: through a second link, who changes the original would change what is served."""
    total, free = sum(path.stat().st_size for path in paths), shutil.disk_usage(job.folder).free
    if free < total:
        raise RepositoryError(
            f"the weights take {total:,} bytes, and {free:,} are free on the disk of {job.folder.parent.parent}"
        )
    try:
        for name, content in job.tokenizer.items():
            (job.folder / name).write_bytes(content)
        with job.steps.step("Copying the weights", total) as advance:
            for path in paths:
                shutil.copyfile(path, job.folder / path.name)
                advance(path.stat().st_size)
    except OSError as error:
        raise RepositoryError(
            f"writing {total:,} bytes beside the repository failed: {error}; nothing was changed"
        ) from error


def _saved(model: ir.Model, folder: Path) -> None:
    try:
        ir.save(model, folder / description.GRAPH)
    except OSError as error:
        raise RepositoryError(
            f"writing the graph beside the repository failed: {error}; nothing was changed"
        ) from error


def _logits(
    path: Path, asked: Container[str], manifest: Manifest, ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What the original graph says of rows of ids, in float32 [rows, tokens, vocab]; `asked` are its inputs."""
    rows, width = ids.shape
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if "position_ids" in asked:
        inputs["position_ids"] = np.tile(np.arange(width), (rows, 1))
    if "num_logits_to_keep" in asked:
        inputs["num_logits_to_keep"] = np.array(0)
    call = parts.Call("text", rows, width, dict(inputs))
    parts.run(path.parent, replace(manifest, graph=path.name), [call])
    logits: NDArray[np.float32] = call.values["logits"].numpy().astype(np.float32)
    return logits
