"""Reshapes, slices and casts that give back what they were given.

`Reshape(Reshape(x))` of x's own shape is x; a slice of everything is the whole; so is a cast to the same type. Shapes are
compared symbolically: equal names of symbolic dimensions are equal lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import replace_value

if TYPE_CHECKING:
    import onnx_ir as ir

    from . import Context

_VIEWS = {"Reshape", "Slice", "Cast", "Identity", "Expand"}


def cancel_views(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Replace each view that changes nothing by what it views."""
    changed = 0
    for node in graph:
        if node.domain == "" and node.op_type in _VIEWS:
            source = _source(node)
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
        producer = value.producer()
        if node.op_type != "Reshape" or producer is None or producer.op_type != "Reshape":
            return None
        value = producer.inputs[0]
    return None
