"""manifest.json: what one version of a model is. docs/manifest.md describes every field."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


@dataclass(frozen=True)
class KVCache:
    """The KV cache's layout."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    tensors: tuple[CacheTensor, ...]


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
    kind: str = "text"
    schema_version: int = field(default=SCHEMA_VERSION)

    @property
    def tokenizer_sha256(self) -> str:
        """Of tokenizer.json."""
        return self.files["tokenizer.json"].sha256

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), indent=2) + "\n"
