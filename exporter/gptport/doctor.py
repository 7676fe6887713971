"""Does a model repository fit a Triton image? Each check says ok, problem, or unknown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx
import psutil
from rich.filesize import decimal

from . import images, integrity, manifest, operator_counts, processor, server, triton_config, versions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tritonclient.grpc import model_config_pb2 as pb

    from .images import Image
    from .manifest import Manifest

Status = Literal["ok", "problem", "unknown"]

_TEXT_SEQUENCES = 32  # that the engine runs at once, unless max_batch_size is in config.pbtxt


@dataclass(frozen=True)
class Check:
    """What was found of one thing of one model."""

    model: str
    what: str
    status: Status
    why: str


@dataclass(frozen=True)
class Machine:
    """Where the models are to run.

    Attributes:
        memory: bytes, of a GPU if the models run on one; None if it is not known.
        compute_capability: of the GPU, such as 8.0; None if it is not known.
    """

    memory: int | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class _Model:
    """A text or step model of the repository, the version that it serves."""

    name: str
    folder: Path
    manifest: Manifest
    config: pb.ModelConfig

    @property
    def kind(self) -> str:
        """KIND_CPU, KIND_GPU or KIND_AUTO."""
        group = self.config.instance_group[0]
        return str(type(group).Kind.Name(group.kind))


def examine(repository: Path, image: Image, machine: Machine) -> list[Check]:
    """Every check of every model in a repository.

    Raises:
        RepositoryError: it is none, or not one of ours.
    """
    found: list[Check] = []
    for name in server.models_of(repository):
        folder = manifest.version_folder(repository / name)
        config = triton_config.parse(repository / name / versions.CONFIG)
        model = _Model(name, folder, manifest.read(folder), config)
        if not folder.is_symlink():
            found += [Check(model.manifest.name, *each) for each in _of_files(model, image)]
        found += [Check(name, *each) for each in _of_model(model, image, machine)]
    return found


_Found = tuple[str, Status, str]


def _of_files(model: _Model, image: Image) -> Iterator[_Found]:
    """What all models of an export share; the folder is one's own, and linked to by the others."""
    damage = integrity.damage(model.folder, model.manifest)
    yield "files", "problem" if damage else "ok", "; ".join(damage) or "as the manifest says"
    graph = onnx.load(model.folder / model.manifest.graph, load_external_data=False)
    if image.onnxruntime is None:
        yield "onnxruntime", "unknown", f"no source says which one {image.tag} holds"
        return
    yield "onnxruntime", "ok", f"{image.onnxruntime} in {image.tag}"
    yield from _opset(graph, image.onnxruntime)
    yield _operators(graph, image.onnxruntime)
    tensorrt = model.manifest.dialect == "tensorrt"
    yield "TensorRT", "unknown" if tensorrt else "ok", "not known" if tensorrt else "not used by this model"


def _opset(graph: onnx.ModelProto, onnxruntime: str) -> Iterator[_Found]:
    opset = next(each.version for each in graph.opset_import if each.domain in ("", "ai.onnx"))
    limits = images.limits(onnxruntime)
    if limits is None:
        yield "opset", "unknown", f"what onnxruntime {onnxruntime} loads was not tried"
        return
    for what, has, most in (
        ("opset", opset, limits.opset),
        ("IR version", graph.ir_version, limits.ir_version),
    ):
        yield what, "ok" if has <= most else "problem", f"{has}; onnxruntime {onnxruntime} loads up to {most}"


def _operators(graph: onnx.ModelProto, onnxruntime: str) -> _Found:
    needs: dict[str, str] = {}
    for node in operator_counts.nodes(graph.graph):
        if node.domain != "com.microsoft":
            continue
        known = images.operator(node.op_type)
        if known is None:
            return "operators", "unknown", f"{node.op_type} is not in the table"
        version = known.needs({each.name for each in node.attribute}, len(node.input))
        needs[node.op_type] = max(version, needs.get(node.op_type, ""), key=images.comparable)
    late = {
        name: version
        for name, version in needs.items()
        if images.comparable(version) > images.comparable(onnxruntime)
    }
    if late:
        wanted = ", ".join(
            f"{name} as used here needs onnxruntime {version}" for name, version in late.items()
        )
        return "operators", "problem", wanted
    return "operators", "ok", ", ".join(sorted(needs)) or "none beyond ONNX"


def _of_model(model: _Model, image: Image, machine: Machine) -> Iterator[_Found]:
    if model.config.backend == "gptport":
        yield (
            "backend",
            "unknown",
            f"{image.tag} as NVIDIA ships it lacks the backend gptport and its packages onnxruntime and tokenizers",
        )
    else:
        yield "backend", "ok", f"{model.config.backend} is part of the image"
    yield _dtype(model)
    if model.manifest.cpu_flags:
        yield _cpu(model)
    yield _gpu(model, image, machine)
    yield _memory(model, machine)


def _dtype(model: _Model) -> _Found:
    dtype = model.manifest.kv_cache.dtype
    where = f"{dtype} on {model.kind}"
    if model.kind == "KIND_GPU" and dtype == "float32" and not model.manifest.kv_cache.grows:
        return "dtype", "problem", f"{where}: on CUDA onnxruntime's attention is in half precision only"
    if model.kind == "KIND_CPU" and dtype == "bfloat16":
        return "dtype", "problem", f"{where}: onnxruntime has no bfloat16 on the CPU"
    return "dtype", "ok", where


def _cpu(model: _Model) -> _Found:
    needed = " or ".join(model.manifest.cpu_flags)
    if model.kind == "KIND_GPU":
        return "CPU", "problem", "products by rows are computed on the CPU only, and this is for KIND_GPU"
    if processor.missing(model.manifest.cpu_flags):
        return "CPU", "problem", f"{needed} is needed, which this machine's lacks: sums would saturate"
    return "CPU", "ok", f"{needed} is needed, and there"


def _gpu(model: _Model, image: Image, machine: Machine) -> _Found:
    needed = image.compute_capability
    if model.kind == "KIND_CPU":
        return "GPU", "ok", "not used"
    if needed is None:
        return "GPU", "unknown", f"no source says which GPUs {image.tag} supports"
    if model.manifest.kv_cache.dtype == "bfloat16":
        needed = max(needed, "8.0", key=images.comparable)  # where tensor cores with bfloat16 begin
    if machine.compute_capability is None:
        return (
            "GPU",
            "unknown",
            f"compute capability {needed} is needed; give yours with --compute-capability",
        )
    fits = images.comparable(machine.compute_capability) >= images.comparable(needed)
    status: Status = "ok" if fits else "problem"
    return "GPU", status, f"compute capability {needed} is needed, {machine.compute_capability} is there"


def _memory(model: _Model, machine: Machine) -> _Found:
    """The least: weights and the KV cache of all sequences; an onnxruntime needs some more for itself."""
    weights = sum(file.bytes for file in model.manifest.files.values())
    sequence = model.manifest.cache_bytes_per_token * model.manifest.max_length
    slots = {
        "text": int(model.config.parameters["max_batch_size"].string_value or _TEXT_SEQUENCES),
        "step": model.config.sequence_batching.oldest.max_candidate_sequences,
        "kv": 0,  # clients hold them
        "growing": 0,
    }[model.config.parameters["gptport_kind"].string_value]
    count = model.config.instance_group[0].count
    needed = count * (weights + slots * sequence)
    parts = f"{decimal(weights)} weights + {slots} sequences × {decimal(sequence)} KV cache"
    said = f"{decimal(needed)}: {count} × ({parts})"
    there = machine.memory
    if there is None and model.kind == "KIND_CPU":
        there = psutil.virtual_memory().total
    if there is None:
        return "memory", "unknown", f"{said}; give the GPU's with --memory"
    return "memory", "ok" if needed <= there else "problem", f"{said}; {decimal(there)} are there"
