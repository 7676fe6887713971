"""One decoder layer of a graph: its nodes and how they hang together, to count and to draw."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import residuals, weights
from .trace import layer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import onnx_ir as ir


@dataclass(frozen=True)
class LayerNode:
    """A node.

    Attributes:
        operator: its type.
        domain: of the type; empty for ONNX's own.
        detail: the shape and bits of its matrix, heads, or kind, as far as it has them.
        before: indices of the nodes of the layer whose results it takes, in the order of its inputs.
        takes: what it takes from elsewhere: `residual`, `normalized` (what other layers computed), `KV cache`.
        gives: what others take of it: `residual`, `normalized`.
    """

    operator: str
    domain: str
    detail: str
    before: tuple[int, ...]
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class LayerGraph:
    """A layer: its number, from 0, and its nodes in the order in which they run."""

    index: int
    nodes: tuple[LayerNode, ...]

    @property
    def operators(self) -> Counter[str]:
        """How many nodes of which operator."""
        return Counter(node.operator for node in self.nodes)


def layer_graph(graph: ir.Graph, layers_path: str, index: int) -> LayerGraph:
    """The layer of that number. A norm that is fused with the addition of the layer before belongs to that one."""
    nodes = [node for node in graph if layer_of(node, layers_path) == index]
    made = {value for node in nodes for value in node.outputs}

    def kinds(values: list[ir.Value]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(kind for value in values if (kind := _kind(value))))

    def takes(node: ir.Node) -> tuple[str, ...]:
        foreign = [value for value in node.inputs if value is not None and value not in made]
        return kinds(foreign)

    def gives(node: ir.Node) -> tuple[str, ...]:
        left = [v for v in node.outputs if any(user not in inside for user, _ in v.uses())]
        return kinds(left)

    inside = set(nodes)
    return layer_of_nodes(index, nodes, _detail, takes, gives)


def layer_of_nodes(
    index: int,
    nodes: Sequence[ir.Node],
    detail: Callable[[ir.Node], str],
    takes: Callable[[ir.Node], Iterable[str]],
    gives: Callable[[ir.Node], Iterable[str]],
) -> LayerGraph:
    """The layer of that number, of these nodes, of which the functions tell what `LayerNode` says."""
    places = {value: i for i, node in enumerate(nodes) for value in node.outputs}
    return LayerGraph(
        index,
        tuple(
            LayerNode(
                node.op_type,
                node.domain,
                detail(node),
                tuple(dict.fromkeys(places[v] for v in node.inputs if v is not None and v in places)),
                tuple(dict.fromkeys(takes(node))),
                tuple(dict.fromkeys(gives(node))),
            )
            for node in nodes
        ),
    )


def _kind(value: ir.Value) -> str | None:
    """What a value is that crosses the layer's border; None for weights, lengths, positions, shapes and tables."""
    if value.is_graph_input():
        return "KV cache" if str(value.name).startswith("past_key_values.") else None
    if residuals.is_marked(value):
        return "residual"
    node = value.producer()
    return "normalized" if node is not None and "Norm" in node.op_type and node.outputs[0] is value else None


def _detail(node: ir.Node) -> str:
    attributes = node.attributes
    if "bits" in attributes:
        return f"{attributes.get_int('K')} × {attributes.get_int('N')}, {attributes.get_int('bits')} bits"
    if node.op_type == "MatMulIntegerToFloat" and node.inputs[1] is not None:
        return f"{' × '.join(map(str, weights.shape(node.inputs[1])))}, 8 bits"
    if "kv_num_heads" in attributes:
        return f"{attributes.get_int('num_heads')} heads on {attributes.get_int('kv_num_heads')} of keys"
    matrices = [weights.shape(v) for v in node.inputs if v is not None and weights.is_parameter(v)]
    shapes = [" × ".join(map(str, shape)) for shape in matrices if len(shape) > 1]
    return ", ".join(shapes) or (attributes.get_string("kind") if "kind" in attributes else "")
