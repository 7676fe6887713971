"""What is known of a foreign graph without a checkpoint: the layer of a node and the part of a weight, told from names.

Exporters name a node after the path of the module that it comes from, `/model/layers.0/self_attn/q_proj/MatMul`. A node whose
name says nothing belongs nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from .layer_graph import LayerGraph, layer_of_nodes
from .weight_parts import PARTS, TABLES, PartSize

if TYPE_CHECKING:
    from collections.abc import Iterator

_LAYER = re.compile(r"(?:^|[./])(?:layers?|h|blocks?)[./](\d+)[./](.*)")
_NORM, _ATTENTION = re.compile(r"norm|(?:^|[./])ln_?\w*[./]"), re.compile(r"attn|attention")
_TABLE_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
_ROWS = ("Gather", "GatherBlockQuantized")
_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulBnb4")
_SIZES = ("Shape", "Size")
_OTHER = "weights"


@dataclass(frozen=True)
class ForeignLayers:
    """A graph, as far as its names tell.

    Attributes:
        sizes: bytes of each part; `parameters` are not known. All are `weights` where no layer is told.
        operators: nodes of the whole graph, by operator.
        inside: those of the layer that is drawn.
        layer: its nodes that hidden states go through; None where no layer is told.
    """

    sizes: tuple[PartSize, ...]
    operators: Counter[str]
    inside: Counter[str]
    layer: LayerGraph | None

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(each.bytes for each in self.sizes)


def examined(model: ir.Model, layers: int) -> ForeignLayers:
    """Look at a graph with so many decoder layers; of two graphs in one, at that with past."""
    graph = _with_past(model.graph)
    nodes = [node for node in graph if node.op_type != "Constant"]
    index = min(1, layers - 1)
    inside = [node for node in nodes if _layer(node, layers) == index]
    return ForeignLayers(
        _sizes(model, layers, told=bool(inside)),
        Counter(node.op_type for node in nodes),
        Counter(node.op_type for node in inside),
        _layer_graph(graph, index, inside),
    )


def _with_past(graph: ir.Graph) -> ir.Graph:
    for node in graph:
        if node.op_type == "If":
            return node.attributes["then_branch"].as_graph()
    return graph


def _layer(node: ir.Node, layers: int) -> int | None:
    found = _LAYER.search(node.name or "")
    return int(found[1]) if found and int(found[1]) < layers else None


def _sizes(model: ir.Model, layers: int, *, told: bool) -> tuple[PartSize, ...]:
    stored: Counter[str] = Counter()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            if value.const_value is not None:
                stored[_part(value, layers) if told else _OTHER] += value.const_value.nbytes
        for node in graph:
            constant = node.attributes.get("value") if node.op_type == "Constant" else None
            if constant is not None and constant.type == ir.AttributeType.TENSOR:
                stored[TABLES if told else _OTHER] += constant.as_tensor().nbytes
    return tuple(PartSize(part, 0, stored[part]) for part in (*PARTS, _OTHER) if stored[part])


def _part(value: ir.Value, layers: int) -> str:
    nodes = [node for node, _ in value.uses()]
    if value.dtype in _TABLE_TYPES or not nodes:
        return TABLES
    names = [(node.name or "").lower() + "/" for node in nodes]
    if any(_NORM.search(name) for name in names):
        return "norms"
    if all(_layer(node, layers) is None for node in nodes):
        if any(node.op_type in _ROWS and node.inputs[0] is value for node in nodes):
            return "embedding"
        return "head" if any(node.op_type in _PRODUCTS for node in nodes) else TABLES
    if len({_layer(node, layers) for node in nodes}) > 1:  # such as the rotary tables
        return TABLES
    return "attention" if any(_ATTENTION.search(name) for name in names) else "MLP"


def _layer_graph(graph: ir.Graph, index: int, inside: list[ir.Node]) -> LayerGraph | None:
    """The layer's nodes that compute with what was made of the ids; sizes, masks and tables are left out. None if none do."""
    data = set(_computed(graph))
    nodes = [node for node in inside if any(value in data for value in node.inputs)]
    nodes = [node for node in nodes if node.op_type not in _SIZES and any(v in data for v in node.outputs)]
    if not nodes:
        return None
    made = {value for node in nodes for value in node.outputs}
    chosen = set(nodes)

    def takes(node: ir.Node) -> Iterator[str]:
        for value in node.inputs:
            if value is not None and str(value.name).startswith("past_key_values."):
                yield "KV cache"
            elif value in data and value not in made:
                yield "hidden state"

    def gives(node: ir.Node) -> Iterator[str]:
        for value in node.outputs:
            if any(user not in chosen and user.op_type not in _SIZES for user, _ in value.uses()):
                yield "hidden state"

    return layer_of_nodes(index, nodes, _detail, takes, gives)


def _computed(graph: ir.Graph) -> Iterator[ir.Value]:
    """What depends on the values of input_ids, not on how many there are."""
    found: set[ir.Value] = set()
    for node in graph:
        first = any(value is not None and value.name == "input_ids" for value in node.inputs)
        if (first or any(value in found for value in node.inputs)) and node.op_type not in _SIZES:
            found.update(node.outputs)
    yield from found


def _detail(node: ir.Node) -> str:
    attributes = node.attributes
    if "bits" in attributes and "K" in attributes:
        return f"{attributes.get_int('K')} × {attributes.get_int('N')}, {attributes.get_int('bits')} bits"
    if "kv_num_heads" in attributes:
        return f"{attributes.get_int('num_heads')} heads on {attributes.get_int('kv_num_heads')} of keys"
    shapes = [value.shape for value in node.inputs if value is not None and value.is_initializer()]
    return ", ".join(
        " × ".join(str(dim) for dim in shape) for shape in shapes if shape is not None and len(shape) > 1
    )
