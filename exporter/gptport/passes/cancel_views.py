"""Reshapes, slices, casts and pairs of transpositions that give back what they were given; transposed parameters.

`Reshape(Reshape(x))` of x's own shape is x; a slice of everything is the whole; so is a cast to the same type. Shapes are
compared symbolically: equal names of symbolic dimensions are equal lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import weights
from . import is_op, producer, replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

    from . import Context

_VIEWS = {"Reshape", "Slice", "Cast", "Identity", "Expand"}


def cancel_views(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Replace each view that changes nothing by what it views."""
    changed = 0
    for node in graph:
        if node.domain == "" and node.op_type in (*_VIEWS, "Transpose"):
            source = _untransposed(node) if node.op_type == "Transpose" else _source(node)
            if source is not None:
                replace_value(node.outputs[0], source)
                changed += 1
    return changed


def _source(node: ir.Node) -> ir.Value | None:
    """The value that the node's output is equal to, if there is one: its input, or what that is a reshape of."""
    value, output = node.inputs[0], node.outputs[0]
    while value is not None:
        if value.shape is not None and value.shape == output.shape and value.dtype == output.dtype:
            return value
        before = producer(value)
        if node.op_type != "Reshape" or before is None or before.op_type != "Reshape":
            return None
        value = before.inputs[0]
    return None


def _untransposed(node: ir.Node) -> ir.Value | None:
    """What a transposition of a transposition gives back; the transpose of a matrix, stored as such."""
    value = node.inputs[0]
    if value is not None and weights.is_parameter(value) and node.attributes.get_ints("perm") == (1, 0):
        return weights.transpose(value)
    before = producer(value)
    if before is None or not is_op(before, "Transpose"):
        return None
    first, second = (each.attributes.get_ints("perm") for each in (before, node))
    return before.inputs[0] if [first[axis] for axis in second] == sorted(first) else None
