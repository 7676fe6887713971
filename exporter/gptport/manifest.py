"""manifest.json: what one version of a model is. docs/manifest.md describes every field."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from . import versions
from .errors import RepositoryError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph; a dimension is a number or the name of one that may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class CacheTensor:
    """One layer's keys or values: the input they come in by and the output they leave by."""

    layer: int
    kind: str
    past: str
    present: str


def cache_tensors(pasts: Sequence[Tensor], presents: Sequence[Tensor]) -> tuple[CacheTensor, ...]:
    """Those of each layer in turn, first its keys, then its values."""
    return tuple(
        CacheTensor(i // 2, ("key", "value")[i % 2], past.name, present.name)
        for i, (past, present) in enumerate(zip(pasts, presents, strict=True))
    )


@dataclass(frozen=True)
class KVCache:
    """The KV cache's layout.

    Attributes:
        kv_heads, head_dim: of every layer; None where layers differ: the inputs say what they have.
        grows: whether present is past with the new keys and values behind it, instead of a buffer of fixed size.
    """

    layers: int
    kv_heads: int | None
    head_dim: int | None
    dtype: str
    tensors: tuple[CacheTensor, ...]
    grows: bool = False


@dataclass(frozen=True)
class Projection:
    """A product with a matrix that LoRA adapters may add to, by three optional inputs of the graph.

    Attributes:
        modules: of the checkpoint, and how many features each gives; the product has them side by side.
        order: stretches [first, end) of those features, as the product has them; none for as they are.
        down, up: the inputs for the matrices, [in, rank] and [rank, out].
        rows: the input [batch, 1, rank] that says which of the rank's columns are meant for which row.
    """

    modules: dict[str, int]
    order: tuple[tuple[int, int], ...]
    down: str
    up: str
    rows: str


@dataclass(frozen=True)
class Tokens:
    """Special tokens."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True)
class File:
    """A file's size in bytes and hash."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> File:
        """Measure a file."""
        with path.open("rb") as file:
            return cls(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


@dataclass(frozen=True)
class Manifest:
    """See docs/manifest.md."""

    name: str
    precision: str
    dialect: str
    opsets: dict[str, int]
    ir_version: int
    graph: str
    vocab_size: int
    max_length: int
    logits: str
    tokens: Tokens
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    roles: dict[str, str]
    kv_cache: KVCache
    source: dict[str, str]
    verification: dict[str, float]
    tools: dict[str, str]
    files: dict[str, File]
    optional_inputs: tuple[Tensor, ...] = ()
    lora: tuple[Projection, ...] = ()
    sampler: str | None = None
    cpu_flags: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def cache_shapes(self) -> tuple[tuple[int, int], ...]:
        """Heads, and numbers in a head, of each of the cache's tensors."""
        shapes = {tensor.name: tensor.shape for tensor in self.inputs}
        pasts = (shapes[tensor.past] for tensor in self.kv_cache.tensors)
        return tuple((int(heads), int(head_dim)) for _, heads, _, head_dim in pasts)

    @property
    def cache_bytes_per_token(self) -> int:
        """Of the KV cache, all layers together."""
        bits = int(self.kv_cache.dtype[-2:])  # float32, float16, bfloat16
        return sum(heads * head_dim for heads, head_dim in self.cache_shapes) * bits // 8

    @property
    def tokenizer_sha256(self) -> str:
        """Of tokenizer.json."""
        return self.files["tokenizer.json"].sha256

    def to_json(self) -> str:
        """As it is written; `lora`, `sampler` and `cpu_flags` only where there are any, `grows` only where the cache does."""
        document = asdict(self)
        if not self.sampler:
            del document["sampler"]
        if not self.kv_cache.grows:
            del document["kv_cache"]["grows"]
        if not self.lora:
            del document["lora"]
        if not self.cpu_flags:
            del document["cpu_flags"]
        return json.dumps(document, indent=2) + "\n"


def version_folder(model: Path) -> Path:
    """The folder of the version that a model serves; a version folder is its own.

    Raises:
        RepositoryError: there is no such model.
    """
    if (model / FILE_NAME).is_file():
        return model
    if not model.is_dir():
        raise RepositoryError(
            f"{model} is not there; give the folder of a model, such as model_repository/smollm2"
        )
    there = versions.versions(model)
    if not there:
        models = sorted(path.name for path in model.iterdir() if (path / versions.CONFIG).is_file())
        raise RepositoryError(
            f"{model} is a repository; give one of its models: {', '.join(str(model / name) for name in models)}"
            if models
            else f"{model} is not a model: it has no version folder"
        )
    return model / str(versions.served(model) or there[-1])


def read(folder: Path) -> Manifest:
    """The manifest of a version folder.

    Raises:
        RepositoryError: there is none, or it is not one that this gptport wrote.
    """
    path = folder / FILE_NAME
    try:
        document = json.loads(path.read_bytes())
        if document["schema_version"] != SCHEMA_VERSION:
            raise RepositoryError(
                f"{path} has schema {document['schema_version']}, this gptport reads {SCHEMA_VERSION}; export again"
            )
        return _manifest(document)
    except OSError as error:
        raise RepositoryError(f"{folder} was not written by gptport: it has no {FILE_NAME}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(f"{path} is damaged: {error}; export again") from error


def _manifest(document: dict[str, Any]) -> Manifest:
    cache, tokens = document["kv_cache"], document["tokens"]
    read_fields: dict[str, Any] = {
        "tokens": Tokens(tokens["bos"], tuple(tokens["eos"]), tokens["pad"]),
        "inputs": _tensors(document["inputs"]),
        "outputs": _tensors(document["outputs"]),
        "optional_inputs": _tensors(document["optional_inputs"]),
        "kv_cache": KVCache(
            **{**cache, "tensors": tuple(CacheTensor(**tensor) for tensor in cache["tensors"])}
        ),
        "lora": tuple(
            Projection(**{**each, "order": tuple(map(tuple, each["order"]))})
            for each in document.get("lora", ())
        ),
        "cpu_flags": tuple(document.get("cpu_flags", ())),
        "files": {name: File(**file) for name, file in document["files"].items()},
    }
    return Manifest(**{**document, **read_fields})


def _tensors(documents: list[dict[str, Any]]) -> tuple[Tensor, ...]:
    return tuple(Tensor(tensor["name"], tensor["dtype"], tuple(tensor["shape"])) for tensor in documents)
