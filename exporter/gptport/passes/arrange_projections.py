"""Attention takes query, key and value in one where they are views of one projection; its weight is rearranged if need be.

    GroupQueryAttention(view(Linear(x, w)), view(…), view(…), …)  →  GroupQueryAttention(Linear(x, w[order]), -, -, …)

The views are followed with numbers: each feature of the projection gets one, and where it comes out is the order. It is the
identity for projections that were packed by us, and goes head by head in GPT-NeoX, BLOOM and the large Falcons.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from .. import weights
from ..operators import DOMAIN
from . import insert_before, is_op

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from . import Context

    Numbers = NDArray[np.int64]

_VIEWS = {"Reshape", "Transpose", "Slice", "Split", "Gather", "Squeeze", "Unsqueeze"}
_BATCH, _SEQUENCE = 2, 3  # any numbers that tell the axes apart


def arrange_projections(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Pack the inputs of every attention that has three."""
    changed = 0
    for node in [node for node in graph if is_op(node, "GroupQueryAttention", "com.microsoft")]:
        packed = _packed([rows for rows in node.inputs[:3] if rows is not None])
        if packed is not None:
            for place, value in enumerate((packed, None, None)):
                node.replace_input_with(place, value)
            changed += 1
    return changed


def _packed(rows: list[ir.Value]) -> ir.Value | None:
    """One value that has the features of the three, if they come from one."""
    found = [_followed(each) for each in rows]
    source = found[0][0]
    if any(other is not source for other, _ in found):
        return None
    order = np.concatenate([features for _, features in found])
    if np.array_equal(order, np.arange(_width(source))):
        return source
    linear = source.producer()
    return _arranged(linear, order) if linear is not None and is_op(linear, "Linear", DOMAIN) else None


def _followed(rows: ir.Value) -> tuple[ir.Value, Numbers]:
    """The value [B, S, N] that `rows` [B, S, n] are a view of, and which n of its features they are."""
    source, views = rows, []
    while (above := _viewed(source)) is not None:
        views.append(source)
        source = above
    if source.shape is None or len(source.shape) != 3:
        return rows, np.arange(_width(rows))
    positions = _width(source) * np.arange(_BATCH * _SEQUENCE).reshape(_BATCH, _SEQUENCE, 1)
    numbers = positions + np.arange(_width(source))
    for view in reversed(views):
        numbers = _run(view, numbers)
    features = numbers.reshape(-1)[: _width(rows)]  # of the first position
    return (
        (source, features)
        if np.array_equal(numbers, positions + features)
        else (rows, np.arange(_width(rows)))
    )


def _viewed(value: ir.Value) -> ir.Value | None:
    """What a value is a view of, if its shape and its indices are constants."""
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in _VIEWS:
        return None
    source: ir.Value | None = node.inputs[0]
    return source if all(each is None or each.const_value is not None for each in node.inputs[1:]) else None


def _run(view: ir.Value, numbers: Numbers) -> Numbers:
    """What the operator of a view gives for its first input."""
    node = view.producer()
    assert node is not None
    feeds: dict[Any, Any] = {each.name: each.const_value for each in node.inputs if each is not None}
    feeds = {name: value.numpy() if value is not None else numbers for name, value in feeds.items()}
    results: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    found: Numbers = results[node.outputs.index(view)]
    return found


def _arranged(linear: ir.Node, order: Numbers) -> ir.Value:
    """The output of a Linear with these features of another one, in this order."""
    x, weight, *bias = linear.inputs
    output = linear.outputs[0]
    assert weight is not None
    assert output.shape is not None
    transposed = linear.attributes.get_int("transposed")
    parameters = [
        weights.take(weight, transposed, order),
        *(weights.take(each, 0, order) for each in bias if each),
    ]
    new = ir.node("Linear", [x, *parameters], {"transposed": transposed}, domain=DOMAIN)
    new.outputs[0].type, new.outputs[0].shape = output.type, ir.Shape([*output.shape[:-1], order.size])
    insert_before(linear, [new])
    return new.outputs[0]


def _width(value: ir.Value) -> int:
    return int(value.shape[-1])  # type: ignore[index, arg-type]
