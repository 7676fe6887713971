"""manifest.json: what the exporter says about the model, read once into a frozen dataclass."""

from __future__ import annotations

import contextlib
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptport_backend.element_types import stored
from gptport_backend.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_VERSION = 1
ROLES = ("input_ids", "position_ids", "seqlens_k", "logits_offsets", "logits")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the graph: its numpy dtype name and its shape, with names for the dimensions that vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CacheTensor:
    """Keys or values of a layer, `[batch, heads, length, head_dim]`: the graph's input and the output that continues it."""

    past: str
    present: str
    heads: int
    head_dim: int


@dataclass(frozen=True)
class CacheSpec:
    """The KV cache of the graph: its tensors, of `dtype`. Layers may differ in heads and in their width."""

    dtype: str
    tensors: tuple[CacheTensor, ...]

    @property
    def token_bytes(self) -> int:
        """Bytes of a token in all tensors together."""
        return sum(each.heads * each.head_dim for each in self.tensors) * stored(self.dtype).itemsize


@dataclass(frozen=True)
class AdaptedProjection:
    """The optional inputs of LoRA adapters beside a product: `down` [in, rank], `up` [rank, out], `rows` [batch, 1, rank]."""

    down: str
    up: str
    rows: str


@dataclass(frozen=True)
class FileSpec:
    """A file of the version directory."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What the backend needs to know of the model; see docs/manifest.md."""

    name: str
    graph: str
    vocab_size: int
    max_length: int
    eos: frozenset[int]
    roles: dict[str, str]
    tensors: dict[str, TensorSpec]
    cache: CacheSpec
    files: tuple[FileSpec, ...]
    lora: tuple[AdaptedProjection, ...] = ()
    sampler: str | None = None  # the graph that draws tokens; older exports have none
    cpu_flags: tuple[str, ...] = ()  # of which the CPU needs one, as Linux names them

    def tensor(self, role: str) -> TensorSpec:
        """The tensor that plays `role`."""
        return self.tensors[self.roles[role]]


def read(version_dir: Path) -> Manifest:
    """Read and check `version_dir/manifest.json`; LoadError says what is wrong with it."""
    path = version_dir / "manifest.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}); export the model again") from error
    except ValueError as error:
        raise LoadError(f"{path} is not JSON ({error}); export the model again") from error
    _check_kind(document, path)
    try:
        manifest = _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(
            f"{path} lacks or misstates {error} in schema version {SCHEMA_VERSION}; export the model again"
        ) from error
    _check_names(manifest, path)
    return manifest


@contextlib.contextmanager
def verifying(manifest: Manifest, version_dir: Path) -> Iterator[None]:
    """Check the files in a thread while the body loads them; a damaged file is the error, whatever the body made of it.

    Hashing gives up Python's lock and reads what the body reads, so that a model is loaded about as fast as without.

    Raises:
        LoadError: a file is missing or has changed.
    """
    with ThreadPoolExecutor(1) as threads:
        verified = threads.submit(verify_files, manifest, version_dir)
        try:
            yield
        finally:
            verified.result()


def verify_files(manifest: Manifest, version_dir: Path) -> None:
    """Check size and sha256 of every file; LoadError names the first that is missing or has changed."""
    for spec in manifest.files:
        path = version_dir / spec.name
        if not path.is_file():
            raise LoadError(f"{path} is missing; export the model again")
        size = path.stat().st_size
        if size != spec.bytes:
            raise LoadError(
                f"{path} has {size} bytes, the manifest says {spec.bytes}; export the model again"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != spec.sha256:
            raise LoadError(
                f"{path} is damaged: its sha256 is {digest}, the manifest says {spec.sha256}; "
                "export the model again"
            )


def _check_kind(document: Any, path: Path) -> None:
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise LoadError(
            f"{path} has schema_version {version!r}; this backend reads {SCHEMA_VERSION}: "
            "export the model with the gptport of this backend"
        )
    if document.get("logits") != "last":
        raise LoadError(f"{path} has logits {document.get('logits')!r}; the backend gptport needs 'last'")


def _parse(document: dict[str, Any]) -> Manifest:
    listed = (*document["inputs"], *document["optional_inputs"], *document["outputs"])
    tensors = {spec.name: spec for spec in map(_tensor, listed)}
    return Manifest(
        name=str(document["name"]),
        graph=str(document["graph"]),
        vocab_size=int(document["vocab_size"]),
        max_length=int(document["max_length"]),
        eos=frozenset(int(token) for token in document["tokens"]["eos"]),
        roles={role: str(document["roles"][role]) for role in ROLES},
        tensors=tensors,
        cache=_cache(document["kv_cache"], tensors),
        files=tuple(
            FileSpec(name, int(item["bytes"]), str(item["sha256"]))
            for name, item in document["files"].items()
        ),
        lora=tuple(
            AdaptedProjection(str(item["down"]), str(item["up"]), str(item["rows"]))
            for item in document.get("lora", ())
        ),
        sampler=document.get("sampler"),
        cpu_flags=tuple(map(str, document.get("cpu_flags", ()))),
    )


def _tensor(item: dict[str, Any]) -> TensorSpec:
    return TensorSpec(str(item["name"]), str(item["dtype"]), tuple(item["shape"]))


def _cache(item: dict[str, Any], declared: dict[str, TensorSpec]) -> CacheSpec:
    return CacheSpec(str(item["dtype"]), tuple(_cache_tensor(each, declared) for each in item["tensors"]))


def _cache_tensor(item: dict[str, Any], declared: dict[str, TensorSpec]) -> CacheTensor:
    """With the shape that the graph's input is declared with; one that is not declared is found by `_check_names`."""
    past, present = str(item["past"]), str(item["present"])
    _, heads, _, head_dim = declared[past].shape if past in declared else (0, 0, 0, 0)
    return CacheTensor(past, present, int(heads), int(head_dim))


def _check_names(manifest: Manifest, path: Path) -> None:
    """Every tensor that is named must be declared, every file must lie beside the manifest."""
    names = list(manifest.roles.values())
    names += [name for tensor in manifest.cache.tensors for name in (tensor.past, tensor.present)]
    names += [name for each in manifest.lora for name in (each.down, each.up, each.rows)]
    for name in names:
        if name not in manifest.tensors:
            raise LoadError(f"{path} names the tensor {name!r} without declaring it; export the model again")
    for file in manifest.files:
        if Path(file.name).name != file.name:
            raise LoadError(f"{path} names the file {file.name!r} outside of its directory")
    for graph in filter(None, (manifest.graph, manifest.sampler)):
        if graph not in {file.name for file in manifest.files}:
            raise LoadError(f"{path} has no sha256 of the graph {graph!r}; export the model again")
