"""What a model computes on [B·S, features] is computed on [B, S, features], as everything around it is.

    Linear(Reshape(x, [-1, n]))  →  Reshape(Linear(x), [-1, m])

OPT flattens its feed-forward network. The reshape moves down until it meets the one back, and both go (`cancel_views`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..operators import DOMAIN
from . import constant, is_op, producer

if TYPE_CHECKING:
    from . import Context

_BY_ROW = {("Linear", DOMAIN), ("Norm", DOMAIN), ("Activation", DOMAIN), ("Relu", ""), ("Add", "")}


def unflatten(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Move every flattening behind the operators that treat each row alone."""
    changed = 0
    for node in graph:
        if (node.op_type, node.domain) in _BY_ROW and _unflatten(graph, node):
            changed += 1
    return changed


def _unflatten(graph: ir.Graph, node: ir.Node) -> bool:
    """Move the flattenings of all inputs that are no parameters behind the node; False if there is one that is not flattened."""
    output = node.outputs[0]
    wholes = {place: _whole(value) for place, value in enumerate(node.inputs) if not _is_constant(value)}
    shapes = {
        tuple(whole.shape[:-1]) for whole in wholes.values() if whole is not None and whole.shape is not None
    }
    if None in wholes.values() or len(shapes) != 1 or output.shape is None:
        return False
    width = output.shape[-1]
    for place, whole in wholes.items():
        node.replace_input_with(place, whole)
    output.shape = ir.Shape([*shapes.pop(), width])
    flat = ir.node("Reshape", [output, constant(graph, [-1, width])], metadata_props=node.metadata_props)
    flat.outputs[0].type, flat.outputs[0].shape = output.type, ir.Shape([None, width])
    ir.convenience.replace_all_uses_with(output, flat.outputs[0])
    flat.replace_input_with(0, output)
    graph.insert_after(node, flat)
    return True


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _whole(value: ir.Value | None) -> ir.Value | None:
    """What [B·S, n] was flattened from, [B, S, n]; None if it was not."""
    node = producer(value)
    whole = node.inputs[0] if node is not None and is_op(node, "Reshape") else None
    if whole is None or value is None or whole.shape is None or value.shape is None:
        return None
    flattens = len(whole.shape) == 3 and len(value.shape) == 2 and whole.shape[-1] == value.shape[-1]
    return whole if flattens else None
