"""torch's split, which is traced as a sequence of tensors, becomes a Split.

SequenceAt(SplitToSequence(x, sizes), i)  →  Split(x, sizes)[i]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from . import constant, insert_before, is_op, replace_value

if TYPE_CHECKING:
    from . import Context


def split_sequences(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Replace every split whose parts are all taken by a constant index."""
    nodes = [node for node in graph if is_op(node, "SplitToSequence")]
    for node in nodes:
        _split(graph, node)
    return len(nodes)


def _split(graph: ir.Graph, node: ir.Node) -> None:
    taken = {_constant(use.inputs[1]): use.outputs[0] for use, _ in node.outputs[0].uses()}
    axis = node.attributes.get_int("axis")
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    sizes = _sizes(int(x.shape[axis]), _constant(node.inputs[1]))  # type: ignore[arg-type]
    split = ir.node("Split", [x, constant(graph, sizes)], {"axis": axis}, num_outputs=len(sizes))
    insert_before(node, [split])
    for i, piece in enumerate(split.outputs):
        if i in taken:
            replace_value(taken[i], piece)
        else:
            piece.type, piece.shape = x.type, ir.Shape([*x.shape[:axis], sizes[i], *x.shape[axis + 1 :]])


def _sizes(total: int, size: int | list[int]) -> list[int]:
    """The length of each part: those given, or parts of one size of which the last may be shorter."""
    if isinstance(size, list):
        return size
    return [min(size, total - start) for start in range(0, total, size)]


def _constant(value: ir.Value | None) -> int | list[int]:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    assert tensor is not None, "torch splits by constant sizes"
    values: int | list[int] = tensor.numpy().tolist()
    return values
