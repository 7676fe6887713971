"""The way of an ONNX directory that another exporter wrote: recognise it, give its graph our inputs, compare the two, publish.

Nothing is quantized, and no checkpoint is needed: weights are copied as they are, and the original graph says what is right.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from . import export as exports
from . import foreign_graph, genai, parts, rewire, triton_config, verify
from . import repository as repositories
from .errors import RepositoryError, UnsupportedModel
from .foreign_precision import precision_of
from .manifest import FILE_NAME
from .reference import Reference, beginning, evaluation_text
from .versions import served

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from numpy.typing import NDArray

    from .console import Steps
    from .foreign_graph import ForeignGraph
    from .manifest import Manifest
    from .onnx_directory import OnnxDirectory


@dataclass(frozen=True)
class Packaged:
    """What was written.

    Attributes:
        folders: model name → version folder, the text model first.
        manifest: of both.
        parity: how close the packaged graph is to the original one.
    """

    folders: dict[str, Path]
    manifest: Manifest
    parity: verify.Parity


def package(
    source: OnnxDirectory,
    repository: Path,
    name: str,
    max_length: int | None,
    steps: Steps,
    evaluation: Path | None = None,
    keep: int | None = None,
    serving: triton_config.Serving | None = None,
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
    if graph.grows:
        raise UnsupportedModel(
            f"{graph.path}: {graph.cache[0].past.name} grows; expected it to be the past of a GroupQueryAttention"
        )
    asked = tuple(graph.inputs)
    precision = precision_of(graph)
    serving = serving or triton_config.Serving()
    serving.check(precision.dtype_name)
    most = min(spec.context_length, rewire.table_length(graph) or spec.context_length)
    length = exports.chosen_length(source.name, most, max_length)
    text = evaluation_text(evaluation)
    with repositories.staging(repository) as staging, ThreadPoolExecutor() as background:
        folder = staging / "version"
        folder.mkdir()
        tokenizer = source.tokenizer_files()
        ours = rewire.rewired(graph, spec)
        manifest = exports.described(ours, source, name, precision, length)
        _write(ours, graph, tokenizer, folder, steps)
        genai.write(folder, manifest)
        files = background.submit(exports.hashed, folder)
        ids = beginning(tokenizer["tokenizer.json"], text, spec.vocab_size, length)
        with steps.step("Running the original graph"):
            expected = Reference(
                ids, _logits(graph.path, asked, manifest, ids), np.zeros((0, ids.shape[1], 0), np.float32)
            )
        with steps.step("Comparing the packaged graph with it"):
            parity = verify.verify(folder, manifest, expected, precision)
        with steps.step("Publishing"):
            manifest = exports.measured(manifest, source, source.sha256.result(), files.result(), parity)
            (folder / FILE_NAME).write_text(manifest.to_json())
            folders = exports.published(repository, folder, manifest, keep, serving)
    return Packaged(folders, manifest, parity)


def _write(
    model: ir.Model, graph: ForeignGraph, tokenizer: dict[str, bytes], folder: Path, steps: Steps
) -> None:
    """Write the graph and copy the weights: through a second link, who changes the original would change what is served."""
    files = graph.weights_files
    total, free = sum(path.stat().st_size for path in files), shutil.disk_usage(folder).free
    if free < total:
        raise RepositoryError(
            f"the weights take {total:,} bytes, and {free:,} are free on the disk of {folder.parent.parent}"
        )
    try:
        for name, content in tokenizer.items():
            (folder / name).write_bytes(content)
        with steps.step("Copying the weights", total) as advance:
            for path in files:
                shutil.copyfile(path, folder / path.name)
                advance(path.stat().st_size)
        ir.save(model, folder / exports.GRAPH)
    except OSError as error:
        raise RepositoryError(
            f"writing {total:,} bytes beside the repository failed: {error}; nothing was changed"
        ) from error


def _logits(
    path: Path, asked: Container[str], manifest: Manifest, ids: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What the original graph says of rows of ids, in float32 [rows, tokens, vocab]; `asked` are its inputs."""
    rows, width = ids.shape
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if "position_ids" in asked:
        inputs["position_ids"] = np.tile(np.arange(width), (rows, 1))
    call = parts.Call("text", rows, width, dict(inputs))
    parts.run(path.parent, replace(manifest, graph=path.name), [call])
    logits: NDArray[np.float32] = call.values["logits"].numpy().astype(np.float32)
    return logits
