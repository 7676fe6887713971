"""What Triton's images hold: `images.toml`, read once."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Image:
    """An image; None is what no source says.

    Attributes:
        tag: such as 26.08-py3.
        onnxruntime: version of the onnxruntime in Triton's backend.
        cuda: its version.
        compute_capability: the least that a GPU must have.
        sources: where that is said.
    """

    tag: str
    sources: tuple[str, ...]
    onnxruntime: str | None = None
    cuda: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Limits:
    """What an onnxruntime loads at most: the opset of ai.onnx and the IR version."""

    opset: int
    ir_version: int


@dataclass(frozen=True)
class Operator:
    """Since which onnxruntime an operator, its attributes and a number of inputs are there; "" or missing: since always."""

    since: str
    attributes: Mapping[str, str]
    inputs: Mapping[int, str]

    def needs(self, attributes: set[str], inputs: int) -> str:
        """The first onnxruntime that runs a node with those attributes and so many inputs."""
        found = [
            self.since,
            self.inputs.get(inputs, ""),
            *(self.attributes.get(name, "") for name in attributes),
        ]
        return max(found, key=comparable)


def image(tag: str | None) -> Image:
    """The image of a tag such as 26.08-py3 or 26.08; without one, the newest whose onnxruntime and GPUs are known.

    Raises:
        UsageError: it is not in the table.
    """
    known = _table()["images"]
    if tag is None:
        tag = max(
            name for name, entry in known.items() if {"onnxruntime", "compute_capability"} <= entry.keys()
        )
    name = tag if tag.endswith("-py3") else f"{tag}-py3"
    if name not in known:
        raise UsageError(f"--image {tag} is not one of {', '.join(known)}")
    entry = known[name]
    return Image(tag=name, **{**entry, "sources": tuple(entry["sources"])})


def limits(onnxruntime: str) -> Limits | None:
    """What that onnxruntime loads; None if it was not tried."""
    found = _table()["onnxruntime"].get(onnxruntime)
    return None if found is None else Limits(**found)


def operator(name: str) -> Operator | None:
    """An operator of com.microsoft; None if it is not one that gptport writes."""
    found = _table()["operators"].get(name)
    if found is None:
        return None
    inputs = {int(count): version for count, version in found.get("inputs", {}).items()}
    return Operator(found.get("since", ""), found.get("attributes", {}), inputs)


def comparable(version: str) -> tuple[int, ...]:
    """A version such as 1.28.0, for comparing; "" comes first."""
    return tuple(int(part) for part in version.split(".") if part)


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("images.toml").read_text(encoding="utf-8"))
