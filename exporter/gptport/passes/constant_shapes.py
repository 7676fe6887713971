"""A reshape says which axes it keeps and how long the others are, instead of computing it at run time.

Reshape(x [B,S,576], Concat(B, S, -1, 64))  →  Reshape(x, [0, 0, 9, 64])
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import constant, is_op

if TYPE_CHECKING:
    import onnx_ir as ir

    from . import Context


def constant_shapes(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Give every reshape a constant shape where the traced shapes allow it."""
    changed = 0
    for node in [node for node in graph if is_op(node, "Reshape")]:
        shape = _constant_shape(node.inputs[0], node.outputs[0])
        if shape is not None:
            node.replace_input_with(1, constant(graph, shape))
            node.attributes.pop("allowzero", None)
            changed += 1
    return changed


def _constant_shape(x: ir.Value | None, y: ir.Value) -> list[int] | None:
    if x is None or x.shape is None or y.shape is None:
        return None
    shape = []
    for axis, length in enumerate(y.shape):
        if isinstance(length, int):
            shape.append(length)
        else:
            kept = axis < len(x.shape) and x.shape[axis] == length
            shape.append(0 if kept else -1)
    return shape if shape.count(-1) < 2 else None
