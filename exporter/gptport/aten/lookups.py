"""Operators that find elements by tensors of indices, or give such tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import UnsupportedModel
from ..passes import constant

if TYPE_CHECKING:
    from ..recording import Call
    from .translator import Translate, Translator


def _embedding(t: Translator, call: Call) -> list[ir.Value]:
    weight, ids = (t.value(argument) for argument in call.arguments[:2])
    return t.op(call, "Gather", weight, ids, axis=0)


def _index_select(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, index = call.arguments
    return t.op(call, "Gather", t.value(x), t.value(index), axis=axis)


def _index(t: Translator, call: Call) -> list[ir.Value]:
    """By one tensor of indices, along the first axis."""
    x, (index, *rest) = call.arguments
    if index is None or any(each is not None for each in rest) or t.value(index).dtype == ir.DataType.BOOL:
        raise UnsupportedModel(f"{call.scope} picks elements by more than indices of the first axis")
    return t.op(call, "Gather", t.value(x), t.value(index), axis=0)


def _topk(t: Translator, call: Call) -> list[ir.Value]:
    x, count, axis = (*call.arguments, -1)[:3]
    return t.op(call, "TopK", t.value(x), constant(t.graph, [count]), axis=axis, num_outputs=2)


def _max(t: Translator, call: Call) -> list[ir.Value]:
    """The largest along an axis, and where it is; of equals one, not always torch's."""
    x, axis, keep = (*call.arguments, False)[:3]
    found = t.op(call, "TopK", t.value(x), constant(t.graph, [1]), axis=axis, num_outputs=2)
    return found if keep else [t.op(call, "Squeeze", each, constant(t.graph, [axis]))[0] for each in found]


def _gather(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, index = call.arguments
    return t.op(call, "GatherElements", t.value(x), t.value(index), axis=axis)


def _scatter(t: Translator, call: Call) -> list[ir.Value]:
    """One number at the indices along an axis."""
    x, axis, index, number = call.arguments
    shape = t.op(call, "Shape", t.value(index))[0]
    numbers = t.op(call, "Expand", constant(t.graph, [number], t.dtype(call)), shape)[0]
    return t.op(call, "ScatterElements", t.value(x), t.value(index), numbers, axis=axis)


TRANSLATIONS: dict[str, Translate] = {
    "aten::embedding": _embedding,
    "aten::gather": _gather,
    "aten::index.Tensor": _index,
    "aten::index_select": _index_select,
    "aten::scatter.value": _scatter,
    "aten::max.dim": _max,
    "aten::topk": _topk,
}
