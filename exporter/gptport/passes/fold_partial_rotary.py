"""A rotation of part of a head, which models write as a slice, a rotation and a concatenation, becomes one of the whole.

Concat(Rotary(x[..., :R], table), x[..., R:])  →  Rotary(x, table), which leaves alone what the table does not cover
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..operators import DOMAIN
from . import insert_before, is_op, producer, replace_value

if TYPE_CHECKING:
    from . import Context


def fold_partial_rotary(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Fold every such concatenation."""
    changed = 0
    for concat in [node for node in graph if is_op(node, "Concat") and len(node.inputs) == 2]:
        rotary, rest = producer(concat.inputs[0]), producer(concat.inputs[1])
        if rotary is None or rest is None or not is_op(rotary, "Rotary", DOMAIN):
            continue
        first = producer(rotary.inputs[0])
        if first is not None and _are_the_parts(first, rest, concat.outputs[0]):
            whole = ir.node(
                "Rotary", [first.inputs[0], rotary.inputs[1]], dict(rotary.attributes), domain=DOMAIN
            )
            insert_before(concat, [whole])
            replace_value(concat.outputs[0], whole.outputs[0])
            graph.remove(concat, safe=True)
            changed += 1
    return changed


def _are_the_parts(first: ir.Node, rest: ir.Node, joined: ir.Value) -> bool:
    """Whether two slices of one tensor are its beginning and its rest, along the last axis."""
    if not (is_op(first, "Slice") and is_op(rest, "Slice")) or first.inputs[0] is not rest.inputs[0]:
        return False
    whole, head = first.inputs[0], first.outputs[0]
    starts = ir.convenience.get_const_tensor(rest.inputs[1])  # type: ignore[arg-type]
    assert whole is not None
    return (
        starts is not None
        and whole.shape == joined.shape
        and head.shape is not None
        and int(starts.numpy()[0]) == head.shape[-1]
    )
