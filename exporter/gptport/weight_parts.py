"""How large the parts of a model are: embedding, attention, MLP, norms, head."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import weights
from .operators import DOMAIN
from .passes import is_op
from .trace import layer_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

TABLES = "tables and constants"
PARTS = ("embedding", "attention", "MLP", "norms", "head", TABLES)


@dataclass(frozen=True)
class PartSize:
    """A part of a model.

    Attributes:
        part: one of `PARTS`.
        parameters: how many the checkpoint has of it; one that is used twice counts once.
        bytes: what they take in the graph's weights, scales and zero points included.
    """

    part: str
    parameters: int
    bytes: int


def parts(graph: ir.Graph, layers_path: str) -> dict[str, str]:
    """Parameter → the part that it belongs to, in a graph as it was traced.

    A table that rows are taken from is the embedding, a tied head with it. Outside of the layers, all else but norms is the head.
    """
    attention = {_scope(node) for node in graph if is_op(node, "Attention", DOMAIN)}
    return {
        str(value.name): _part(value, layers_path, attention)
        for value in graph.initializers.values()
        if weights.is_parameter(value)
    }


def parameters(graph: ir.Graph, of: Mapping[str, str]) -> Counter[str]:
    """How many parameters each part has, in a graph as it was traced."""
    found: Counter[str] = Counter()
    for name, part in of.items():
        found[part] += math.prod(weights.shape(graph.initializers[name]))
    return found


def sizes(graph: ir.Graph, of: Mapping[str, str], counts: Mapping[str, int]) -> tuple[PartSize, ...]:
    """The parts of a graph that is ready to be written, in the order of `PARTS`; those of which it has nothing are left out."""
    stored: Counter[str] = Counter()
    for value in graph.initializers.values():
        names = weights.names(value)
        assert value.const_value is not None
        stored[of[names[0]] if names else TABLES] += value.const_value.nbytes
    return tuple(PartSize(part, counts.get(part, 0), stored[part]) for part in PARTS if stored[part])


def _part(value: ir.Value, layers_path: str, attention: set[str]) -> str:
    nodes = [node for node, _ in value.uses()]
    if any(is_op(node, "Norm", DOMAIN) for node in nodes):
        return "norms"
    if any(is_op(node, "Gather") and layer_of(node, layers_path) is None for node in nodes):
        return "embedding"
    if any(f"{_scope(node)}.".startswith(f"{scope}.") for node in nodes for scope in attention):
        return "attention"
    return "head" if all(layer_of(node, layers_path) is None for node in nodes) else "MLP"


def _scope(node: ir.Node) -> str:
    return node.metadata_props.get("scope", "")
