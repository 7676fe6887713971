"""Attention with its rotary embedding becomes one `com.microsoft.GroupQueryAttention`.

    Attention(Rotary(heads(q)), Rotary(heads(k)), heads(v), past…)  →  GroupQueryAttention(q, k, v, past…, cos, sin)

`heads` is the view [B,S,H·D] → [B,H,S,D]. A rotation that the operator cannot take in, because something follows it, stays; see
`rotate_apart`. The operator:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..errors import UnsupportedModel
from ..operators import DOMAIN
from . import constant, insert_before, is_op, producer, replace_value
from .rotate_apart import pairs, rotary_caches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Context

_PAIRS = 8
"""The operator rotates a multiple of so many pairs of axes."""
_WIDTH = 8
"""The operator takes heads whose width is a multiple of this."""
_HIDDEN = -65504.0
"""What the score of a key loses that is not seen: the lowest number of float16, whose exponential is 0 in float32 too."""
_HEADS = (0, 2, 1, 3)
"""The permutation [B,S,H,D] ↔ [B,H,S,D]."""


def fuse_attention(graph: ir.Graph, context: Context) -> int:
    """Lower every Attention.

    Raises:
        UnsupportedModel: its heads are of a width that the operator does not take.
    """
    nodes = [node for node in graph if is_op(node, "Attention", DOMAIN)]
    if nodes:
        total = total_sequence_length(graph)
        for node in nodes:
            _fuse(graph, node, total, context)
    return len(nodes)


def total_sequence_length(graph: ir.Graph) -> ir.Value:
    """The longest row's length, which the operator wants as a scalar: max(seqlens_k) + 1."""
    seqlens_k = next(value for value in graph.inputs if value.name == "seqlens_k")
    longest = ir.node("ReduceMax", [seqlens_k], {"keepdims": 0})
    total = ir.node("Add", [longest.outputs[0], constant(graph, 1, ir.DataType.INT32)])
    total.outputs[0].name = "total_sequence_length"
    insert_before(graph[0], [longest, total])
    return total.outputs[0]


def _fuse(graph: ir.Graph, node: ir.Node, total: ir.Value, context: Context) -> None:
    query, key, value, past_key, past_value, seqlens_k, *sink = node.inputs
    assert query is not None
    assert key is not None
    assert value is not None
    heads, kv_heads, head_dim = (int(n) for n in (query.shape[1], key.shape[1], query.shape[3]))  # type: ignore[index, arg-type]
    if head_dim % _WIDTH:
        raise UnsupportedModel(
            f"the model has heads of {head_dim} features; onnxruntime's attention takes multiples of {_WIDTH}"
        )
    caches: tuple[ir.Value | None, ir.Value | None] = (None, None)
    rotary = _rotation(query, key)
    if rotary is not None:
        caches = rotary_caches(graph, rotary[0], context)
        query, key = (each.inputs[0] for each in rotary)
        assert query is not None
        assert key is not None
    bias = _alibi(graph, node, total, query) or _chunks(graph, node, total, query, context)
    rows = [_rows(node, tensor) for tensor in (query, key, value)]
    rows[0], scale = _unscaled(rows[0])
    attention = ir.node(
        "GroupQueryAttention",
        [*rows, past_key, past_value, seqlens_k, total, *caches, *_padded(bias, sink)],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": scale * node.attributes.get_float("scale"),
            "do_rotary": int(rotary is not None),
            **_options(node, rotary and rotary[0]),
        },
        domain="com.microsoft",
        num_outputs=3,
    )
    out = attention.outputs[0]
    like = node.outputs[0]
    assert like.shape is not None
    out.type, out.shape = like.type, ir.Shape([*like.shape[:2], heads * head_dim])
    view = ir.node("Reshape", [out, constant(graph, [0, 0, heads, head_dim])])
    insert_before(node, [attention, view])
    replace_value(like, view.outputs[0])
    for old, new in zip(node.outputs[1:], attention.outputs[1:], strict=True):
        replace_value(old, new)
    graph.remove(node, safe=True)


def _padded(bias: list[ir.Value | None], sink: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """A sink comes after the positions and the bias."""
    return [*(bias or [None, None]), *sink] if sink else bias


def _alibi(graph: ir.Graph, node: ir.Node, total: ir.Value, query: ir.Value) -> list[ir.Value | None]:
    """The operator's last inputs: none, or no positions and a bias [1, heads, sequence, total] of slope · position of the key."""
    if "slopes" not in node.attributes:
        return []
    slopes = node.attributes.get_floats("slopes")
    dtype = query.dtype
    assert dtype is not None
    name = "alibi." + ".".join(f"{slope:g}" for slope in slopes)
    made = next((value for each in graph for value in each.outputs if value.name == name), None)
    if made is None:
        made = _make_alibi(graph, constant(graph, np.reshape(slopes, (1, -1, 1, 1)), dtype), total, name)
    return [None, made]


def _make_alibi(graph: ir.Graph, slopes: ir.Value, total: ir.Value, name: str) -> ir.Value:
    input_ids = graph.inputs[0]
    assert total.producer() is not None
    assert slopes.dtype is not None
    positions = ir.node(
        "Range", [constant(graph, 0, ir.DataType.INT32), total, constant(graph, 1, ir.DataType.INT32)]
    )
    cast = ir.node("Cast", [positions.outputs[0]], {"to": slopes.dtype})
    row = ir.node("Mul", [slopes, cast.outputs[0]])
    sequence = ir.node("Shape", [input_ids], {"start": 1, "end": 2})
    ones = constant(graph, [1])
    shape = ir.node("Concat", [ones, ones, sequence.outputs[0], ones], {"axis": 0})
    bias = ir.node("Expand", [row.outputs[0], shape.outputs[0]])
    bias.outputs[0].name = name
    graph.insert_after(total.producer(), [positions, cast, row, sequence, shape, bias])  # type: ignore[arg-type]
    return bias.outputs[0]


def _chunks(
    graph: ir.Graph, node: ir.Node, total: ir.Value, query: ir.Value, context: Context
) -> list[ir.Value | None]:
    """As `_alibi`, a bias [batch, 1, sequence, total] that only the keys of a query's own chunk are without."""
    size = node.attributes.get_int("chunk", 0)
    if not size or context.max_length <= size:
        return []
    name = f"chunks.{size}"
    made = next((value for each in graph for value in each.outputs if value.name == name), None)
    if made is None:
        assert query.dtype is not None
        made = _make_chunks(graph, size, total, query.dtype, name)
    return [None, made]


def _make_chunks(graph: ir.Graph, size: int, total: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    position_ids = next(value for value in graph.inputs if value.name == "position_ids")
    assert total.producer() is not None
    of_query = ir.node("Div", [position_ids, constant(graph, [size])])
    column = ir.node("Unsqueeze", [of_query.outputs[0], constant(graph, [1, 3])])
    numbers = [constant(graph, each, ir.DataType.INT32) for each in (0, 1)]
    positions = ir.node("Range", [numbers[0], total, numbers[1]])
    cast = ir.node("Cast", [positions.outputs[0]], {"to": ir.DataType.INT64})
    of_key = ir.node("Div", [cast.outputs[0], constant(graph, [size])])
    same = ir.node("Equal", [column.outputs[0], of_key.outputs[0]])
    nothing, hidden = (constant(graph, each, dtype) for each in (0.0, _HIDDEN))
    bias = ir.node("Where", [same.outputs[0], nothing, hidden])
    bias.outputs[0].name = name
    graph.insert_after(total.producer(), [of_query, column, positions, cast, of_key, same, bias])  # type: ignore[arg-type]
    return bias.outputs[0]


def _options(attention: ir.Node, rotary: ir.Node | None) -> dict[str, int | float]:
    """The attributes that most models leave at their defaults."""
    options: dict[str, int | float] = {}
    if attention.attributes.get_int("window"):
        options["local_window_size"] = attention.attributes.get_int("window")
    if attention.attributes.get_float("softcap"):
        options["softcap"] = attention.attributes.get_float("softcap")
    if rotary is not None and rotary.attributes.get_int("interleaved"):
        options["rotary_interleaved"] = 1
    return options


def _rotation(query: ir.Value, key: ir.Value) -> tuple[ir.Node, ir.Node] | None:
    """What rotates query and key right before attention, if it is the same for both and the operator can do it."""
    by_query, by_key = producer(query), producer(key)
    if by_query is None or by_key is None:
        return None
    rotated = is_op(by_query, "Rotary", DOMAIN) and is_op(by_key, "Rotary", DOMAIN)
    if not rotated or by_query.inputs[1] is not by_key.inputs[1] or by_query.attributes != by_key.attributes:
        return None
    return None if pairs(by_query) % _PAIRS else (by_query, by_key)


def _unscaled(rows: ir.Value) -> tuple[ir.Value, float]:
    """A query before it was multiplied by a number, as OPT does, and that number."""
    node = rows.producer()
    if node is None or not is_op(node, "Mul"):
        return rows, 1.0
    query, factor = node.inputs
    if query is None or factor is None or factor.const_value is None or factor.const_value.size != 1:
        return rows, 1.0
    return query, float(factor.const_value.numpy().item())


def _rows(before: ir.Node, tensor: ir.Value) -> ir.Value:
    """The [B,S,H·D] tensor that a [B,H,S,D] tensor is a view of; a view of our own where there is none."""
    transpose = tensor.producer()
    if (
        transpose is not None
        and is_op(transpose, "Transpose")
        and tuple(transpose.attributes.get_ints("perm")) == _HEADS
    ):
        reshape = producer(transpose.inputs[0])
        source = reshape.inputs[0] if reshape is not None and is_op(reshape, "Reshape") else None
        if source is not None and source.shape is not None and len(source.shape) == 3:
            return source
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    assert tensor.shape is not None
    width = int(tensor.shape[1]) * int(tensor.shape[3])  # type: ignore[arg-type]
    transpose = ir.node("Transpose", [tensor], {"perm": list(_HEADS)})
    reshape = ir.node("Reshape", [transpose.outputs[0], constant(graph, [0, 0, width])])
    insert_before(before, [transpose, reshape])
    rows = reshape.outputs[0]
    rows.type, rows.shape = tensor.type, ir.Shape([tensor.shape[0], tensor.shape[2], width])
    return rows
