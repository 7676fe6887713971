"""A foreign graph with a fixed cache gets our inputs, and gives the logits of the last position.

    attention_mask → … → GroupQueryAttention(…, lengths, total)   becomes   seqlens_k → GroupQueryAttention(…, seqlens_k, total)
    hidden → head → … → logits [batch, sequence, vocab]           becomes   hidden → last → head → … → logits [batch, vocab]

By the operator's definition, what the attention takes of the mask is the length of each row less one, and the longest length:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from . import passes
from .dialects.onnxruntime import last_position
from .errors import UnsupportedModel
from .graph import strip
from .passes.fuse_attention import total_sequence_length

if TYPE_CHECKING:
    from .foreign_graph import ForeignGraph
    from .spec import ModelSpec

_ATTENTION, _ROTARY = "GroupQueryAttention", "RotaryEmbedding"
_SEQLENS, _TOTAL = 5, 6  # inputs of the attention
_COSINES = {_ATTENTION: 7, _ROTARY: 2}
_PRODUCTS = ("MatMul", "MatMulNBits")
_ELEMENTWISE = ("Add", "Cast", "Div", "Mul", "Sub", "Tanh", "Where")


def table_length(foreign: ForeignGraph) -> int | None:
    """Tokens that the graph's rotary tables reach; None if it has none."""
    tables = (node.inputs[_COSINES[node.op_type]] for node in foreign.model.graph if _rotates(node))
    lengths = [table.shape[0] for table in tables if table is not None and table.shape is not None]
    return min((length for length in lengths if isinstance(length, int)), default=None)


def _rotates(node: ir.Node) -> bool:
    place = _COSINES.get(node.op_type)
    return node.domain == "com.microsoft" and place is not None and len(node.inputs) > place


def rewired(foreign: ForeignGraph, spec: ModelSpec) -> ir.Model:
    """The graph as docs/manifest.md describes it; the weights stay where they are. `foreign` is used up.

    Raises:
        UnsupportedModel: it uses the mask, or goes on behind its head, in a way that is not understood.
    """
    model, graph, inputs = foreign.model, foreign.model.graph, foreign.inputs
    passes.tidy(model)
    position_ids = inputs.get("position_ids") or _input("position_ids", ir.DataType.INT64)
    seqlens_k = _input("seqlens_k", ir.DataType.INT32)
    if (kept := inputs.get("num_logits_to_keep")) is not None:
        ir.convenience.replace_all_uses_with(kept, passes.constant(graph, 0))  # all: see `last_position`
    graph.inputs[:] = [inputs["input_ids"], position_ids, seqlens_k, *(pair.past for pair in foreign.cache)]
    total = total_sequence_length(graph)
    for node in graph:
        if passes.is_op(node, _ATTENTION, "com.microsoft"):
            node.replace_input_with(_SEQLENS, seqlens_k)
            node.replace_input_with(_TOTAL, total)
    logits = next(value for value in graph.outputs if value.name == "logits")
    head = _head(foreign, logits)
    assert head.inputs[0] is not None
    last = last_position(head, head.inputs[0], position_ids, seqlens_k, _width(foreign, head.inputs[0]))
    head.replace_input_with(0, last)
    graph.outputs[:] = [_float(logits), *(pair.present for pair in foreign.cache)]
    passes.tidy(model)
    for node in inputs["attention_mask"].consumers():
        raise UnsupportedModel(
            f"{foreign.path}: {node.op_type} {node.name} takes attention_mask; expected only the lengths that {_ATTENTION} takes"
        )
    _declare(graph, spec)
    strip(graph)
    return model


def _input(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype))


def _head(foreign: ForeignGraph, logits: ir.Value) -> ir.Node:
    """The last product; what lies behind it computes each logit of itself."""
    node = logits.producer()
    while node is not None and node.op_type in _ELEMENTWISE:
        computed = [value for value in node.inputs if value is not None and not _is_row(value)]
        node = computed[0].producer() if len(computed) == 1 else None
    if node is None or node.op_type not in _PRODUCTS:
        raise UnsupportedModel(
            f"{foreign.path}: expected logits to be a {' or '.join(_PRODUCTS)}, with constants added or multiplied at most"
        )
    return node


def _is_row(value: ir.Value) -> bool:
    """Whether it is a constant with at most one dimension, which goes with logits of any number of dimensions."""
    return value.is_initializer() and value.shape is not None and len(value.shape) <= 1


def _width(foreign: ForeignGraph, hidden: ir.Value) -> int:
    dims = list(hidden.shape or ())
    if len(dims) != 3 or not isinstance(dims[2], int):
        raise UnsupportedModel(
            f"{foreign.path}: {hidden.name} has the shape {dims}; expected [batch, sequence, width]"
        )
    return dims[2]


def _float(logits: ir.Value) -> ir.Value:
    """The logits in float32."""
    if logits.dtype == ir.DataType.FLOAT:
        return logits
    logits.name = "logits.half"
    producer = logits.producer()
    assert producer is not None
    cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT})
    cast.outputs[0].name, cast.outputs[0].type = "logits", ir.TensorType(ir.DataType.FLOAT)
    producer.append(cast)
    return cast.outputs[0]


def _declare(graph: ir.Graph, spec: ModelSpec) -> None:
    """The shapes of inputs and outputs, by the names that the manifest has for them."""
    ids, positions, seqlens_k, *pasts = [value for value in graph.inputs if not value.is_initializer()]
    logits, *presents = graph.outputs
    ids.shape = positions.shape = ir.Shape(["batch", "sequence"])
    seqlens_k.shape = ir.Shape(["batch"])
    logits.shape = ir.Shape(["batch", spec.vocab_size])
    for value in (*pasts, *presents):
        value.shape = ir.Shape(["batch", spec.kv_heads, "max_length", spec.head_dim])
