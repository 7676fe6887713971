"""The way of a checkpoint: build the graph, write it, verify it, publish it. What was not verified is never in the repository."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from . import calibration, description, genai, processor, report_page, sampling_graph, triton_config, verify
from . import graph as graphs
from . import repository as repositories
from .allocator import return_large_blocks, use_huge_pages
from .errors import RepositoryError, UsageError
from .manifest import FILE_NAME, File, Manifest
from .packed import block_size
from .reference import evaluation_text, reference
from .versions import served

if TYPE_CHECKING:
    from pathlib import Path

    from .checkpoint import Checkpoint
    from .console import Steps
    from .precision import Precision

WEIGHTS = "model.onnx.data"
DEFAULT_MAX_LENGTH = 2048
STEP_CACHES = {
    "server": (repositories.STEP_SUFFIX,),
    "client": (repositories.KV_SUFFIX,),
    "both": repositories.STEP_SUFFIXES,
}


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        folders: model name → version folder, the text model first.
        manifest: of both.
        parity: how close the graph is to the checkpoint.
        lowering: how the graph came to be.
        unread: what the checkpoint has beside it, in words.
    """

    folders: dict[str, Path]
    manifest: Manifest
    parity: verify.Parity
    lowering: graphs.Lowering
    unread: str

    @property
    def repository(self) -> Path:
        """Where the models are."""
        return next(iter(self.folders.values())).parent.parent

    @property
    def report(self) -> Path:
        """The page that says all of this."""
        return next(iter(self.folders.values())) / report_page.FILE_NAME


def export(
    checkpoint: Checkpoint,
    repository: Path,
    name: str,
    precision: Precision,
    max_length: int | None,
    steps: Steps,
    evaluation: Path | None = None,
    jobs: int | None = None,
    keep: int | None = None,
    serving: triton_config.Serving | None = None,
    command: str = "gptport.export.export",
    *,
    adapters: bool = False,
) -> Exported:
    """Export a checkpoint as the model `name` and its step models, `name`_step or `name`_kv.

    Args:
        checkpoint, repository, name, precision: what is exported, where to, and how.
        max_length: tokens that a sequence may have; None for the checkpoint's, at most 2048.
        steps: shows what is done.
        evaluation: a file with the text to compare on, and for gptq and smoothquant to calibrate with; None for one of ours.
        jobs: threads that read, quantize and write the weights; None for one a core.
        keep: older versions that stay; None for all.
        serving: where and how the models are to run.
        command: what the report names as having made it.
        adapters: whether the graph takes LoRA adapters.

    Raises:
        GptportError: what is wrong; the repository is as it was.
    """
    return_large_blocks()
    use_huge_pages()
    name = repositories.checked_name(name)
    for suffix in ("", *repositories.STEP_SUFFIXES):
        served(repository / (name + suffix))  # a configuration that cannot be read is said before the work
    length = chosen_length(checkpoint.name, checkpoint.context_length, max_length)
    serving = serving or triton_config.Serving()
    serving.check(precision.dtype_name)
    if adapters and precision.dtype_name == "bfloat16":
        raise UsageError(
            "--lora does not go with bfloat16 (bf16, or --compute bf16): adapters are float32 or float16"
        )
    precision = _as_stored(checkpoint, precision)
    by_rows = precision.quantization is not None and precision.quantization.algorithm == "smoothquant"
    if by_rows and (lacking := processor.missing(processor.VNNI)):
        raise UsageError(f"--quantization smoothquant: {lacking}")
    text = evaluation_text(evaluation)
    with repositories.staging(repository) as staging, ThreadPoolExecutor() as background:
        folder = staging / "version"
        folder.mkdir()
        tokenizer = checkpoint.tokenizer_files()
        calibrated = None
        if precision.quantization and precision.quantization.algorithm in calibration.ALGORITHMS:
            with steps.step("Calibrating"):
                calibrated = calibration.calibrated(
                    checkpoint, tokenizer["tokenizer.json"], length, text, precision.quantization.algorithm
                )
        with steps.step("Tracing the graph"):
            built = graphs.build(checkpoint, precision, length, calibrated, adapters=adapters)
        manifest = description.described(built.model, checkpoint, name, precision, length)
        _check_step_cache(manifest, repository, serving)
        # Writing is mostly the disk's work and the reference mostly the processor's, so they run side by side; so do hashing and
        # the comparison below.
        written = background.submit(
            write, built.model, manifest, tokenizer, folder, steps, jobs or os.cpu_count() or 1
        )
        with steps.step("Running the checkpoint in torch"):
            layers_path = built.layers_path if built.hidden_states else None
            expected = reference(checkpoint, tokenizer["tokenizer.json"], length, text, layers_path)
        written.result()
        files = background.submit(hashed, folder)
        with steps.step("Comparing the graph with it"):
            parity = verify.verify(folder, manifest, expected, precision, built.hidden_states)
        with steps.step("Publishing"):
            manifest = description.measured(
                manifest, checkpoint, checkpoint.sha256.result(), files.result(), parity
            )
            facts = report_page.Facts(
                manifest, checkpoint.spec, built.lowering, parity, precision, command, built.unread
            )
            manifest = finished(manifest, folder, report_page.page(facts))
            folders = published(repository, folder, manifest, keep, serving)
    return Exported(folders, manifest, parity, built.lowering, built.unread)


def _as_stored(checkpoint: Checkpoint, precision: Precision) -> Precision:
    """The precision, with the blocks that the checkpoint's matrices are stored in already."""
    packing, wanted = checkpoint.packing, precision.quantization
    if packing is None or wanted is None or wanted.bits != packing.bits:
        return precision
    size = block_size(packing.group_size)
    as_stored = replace(wanted, algorithm="rtn", block_size=size, symmetric=False)
    return replace(precision, quantization=as_stored)


def chosen_length(name: str, most: int, wanted: int | None) -> int:
    """The tokens that a sequence may have: `wanted`; if that is None, the most that the model takes, up to 2048.

    Raises:
        UsageError: the model takes fewer.
    """
    if wanted is None:
        return min(most, DEFAULT_MAX_LENGTH)
    if not 2 <= wanted <= most:
        raise UsageError(f"--max-length {wanted} is not allowed: {name} takes 2 to {most} tokens")
    return wanted


def write(
    model: ir.Model, manifest: Manifest, tokenizer: dict[str, bytes], folder: Path, steps: Steps, jobs: int
) -> None:
    """Write the graph, its weights, and what belongs to it into a folder, in `jobs` threads.

    Raises:
        RepositoryError: the disk has no room, or fails.
    """
    sizes = [
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    total, free = sum(sizes), shutil.disk_usage(folder).free
    if free < total:
        raise RepositoryError(
            f"the weights take {total:,} bytes, and {free:,} are free on the disk of {folder.parent.parent}"
        )
    try:
        for file, content in tokenizer.items():
            (folder / file).write_bytes(content)
        with steps.step("Writing the weights", total) as advance:
            ir.save(
                model,
                folder / description.GRAPH,
                external_data=WEIGHTS,
                callback=lambda tensor, _: advance(tensor.nbytes),
                max_workers=jobs,
                max_in_flight_bytes=256 << 20,
                alignment=4096,  # so that onnxruntime can map the weights instead of reading them
            )
        genai.write(folder, manifest)
        sampling_graph.write(folder, manifest)
    except OSError as error:
        raise RepositoryError(
            f"writing {total:,} bytes beside the repository failed: {error}; nothing was changed"
        ) from error


def hashed(folder: Path) -> dict[str, File]:
    """Name → size and hash of the files of a folder, which are on the disk when this returns."""
    files = {path.name: File.of(path) for path in sorted(folder.iterdir())}
    repositories.sync(folder)
    return files


def _check_step_cache(manifest: Manifest, repository: Path, serving: triton_config.Serving) -> None:
    """UsageError if NAME_kv is asked for, or is there, and layers differ: clients hold caches of one shape."""
    step = manifest.name + repositories.KV_SUFFIX
    wanted = repositories.KV_SUFFIX in STEP_CACHES[serving.step_cache] or (repository / step).is_dir()
    if wanted and manifest.kv_cache.kv_heads is None:
        shapes = " and ".join(f"{heads} heads × {width}" for heads, width in sorted({*manifest.cache_shapes}))
        raise UsageError(
            f"{step} has caches of one shape, and the layers of {manifest.name} have {shapes}: "
            f"use --step-cache server, in a repository without {step}"
        )


def finished(manifest: Manifest, folder: Path, report: str) -> Manifest:
    """Write the report and the manifest, which lists it, into the folder."""
    path = folder / report_page.FILE_NAME
    path.write_text(report, encoding="utf-8")
    manifest = replace(manifest, files={**manifest.files, path.name: File.of(path)})
    (folder / FILE_NAME).write_text(manifest.to_json())
    return manifest


def published(
    repository: Path, folder: Path, manifest: Manifest, keep: int | None, serving: triton_config.Serving
) -> dict[str, Path]:
    """Put the version in place as NAME and its step models; model name → version folder, the text model first.

    Also of the step models that the repository has and that were not asked for: they would go on with older weights.
    """
    configs = {manifest.name: partial(triton_config.text_model, manifest, serving=serving)}
    for suffix, write in repositories.STEP_MODELS.items():
        step = manifest.name + suffix
        if suffix in STEP_CACHES[serving.step_cache] or (repository / step).is_dir():
            configs[step] = partial(write, manifest, step, serving=serving)
    return repositories.publish(repository, folder, configs, keep, triton_config.WARMUP_FILES)
