"""A rotation of part of a head, which models write as a slice, a rotation and a concatenation, becomes one of the whole.

    Concat(Rotary(x[..., :R], table), x[..., R:])  →  Rotary(x, table), which leaves alone what the table does not cover

The rotation may stand between two transpositions of sequence and heads; they go around the whole then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..operators import DOMAIN
from . import insert_before, is_op, producer, replace_value

if TYPE_CHECKING:
    from . import Context


_TURN = (0, 2, 1, 3)


def fold_partial_rotary(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Fold every such concatenation."""
    changed = 0
    for concat in [node for node in graph if is_op(node, "Concat") and len(node.inputs) == 2]:
        (rotary, turned), rest = _behind_turn(concat.inputs[0]), producer(concat.inputs[1])
        if rotary is None or rest is None or not is_op(rotary, "Rotary", DOMAIN):
            continue
        first, turned_before = _behind_turn(rotary.inputs[0])
        if first is None or turned != turned_before or not _are_the_parts(first, rest, concat.outputs[0]):
            continue
        before = [_turn(first.inputs[0])] if turned else []
        whole = ir.node(
            "Rotary",
            [before[0].outputs[0] if before else first.inputs[0], rotary.inputs[1]],
            dict(rotary.attributes),
            domain=DOMAIN,
        )
        if before:
            whole.outputs[0].type, whole.outputs[0].shape = (
                before[0].outputs[0].type,
                before[0].outputs[0].shape,
            )
        after = [_turn(whole.outputs[0])] if turned else []
        insert_before(concat, [*before, whole, *after])
        replace_value(concat.outputs[0], (after or [whole])[0].outputs[0])
        graph.remove(concat, safe=True)
        changed += 1
    return changed


def _behind_turn(value: ir.Value | None) -> tuple[ir.Node | None, bool]:
    """What made a value, looking through one transposition of the axes 1 and 2; and whether there was one."""
    node = producer(value)
    if node is not None and is_op(node, "Transpose") and tuple(node.attributes.get_ints("perm")) == _TURN:
        return producer(node.inputs[0]), True
    return node, False


def _turn(value: ir.Value | None) -> ir.Node:
    assert value is not None
    assert value.shape is not None
    node = ir.node("Transpose", [value], {"perm": list(_TURN)})
    node.outputs[0].type = value.type
    node.outputs[0].shape = ir.Shape([value.shape[axis] for axis in _TURN])
    return node


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
