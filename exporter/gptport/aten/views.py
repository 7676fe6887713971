"""Operators that arrange the elements of a tensor in another shape, or take some of them by their place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedModel
from ..passes import constant
from ..recording import Size

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..recording import Call
    from .translator import Translate, Translator


def _reshape(t: Translator, call: Call) -> list[ir.Value]:
    """To constant lengths, `0` for an axis that stays as it is and `-1` for the one that cannot be told beforehand."""
    x, before, after = t.value(call.arguments[0]), t.shape(call.arguments[0]), t.shape(call.results[0])
    if before == after:
        return [x]
    kept = [axis < len(before) and before[axis] == dim for axis, dim in enumerate(after)]
    lengths = [
        dim if isinstance(dim, int) else 0 if same else -1 for dim, same in zip(after, kept, strict=True)
    ]
    if lengths.count(-1) > 1:
        return t.op(
            call, "Reshape", x, t.op(call, "Concat", *(t.length(call, dim) for dim in after), axis=0)[0]
        )
    return t.op(call, "Reshape", x, constant(t.graph, lengths))


def _pad(t: Translator, call: Call) -> list[ir.Value]:
    """With one number, at the end of the last axis. Without naming the axis: onnxruntime's optimizer gets that wrong."""
    x, (before, after, *rest), number = (*call.arguments, 0)[:3]
    if before or any(rest):
        raise UnsupportedModel(f"{call.scope} pads more than the end of the last axis")
    widths = [0] * (2 * len(t.shape(x)) - 1) + [after]
    return t.op(call, "Pad", t.value(x), constant(t.graph, widths), constant(t.graph, number, t.dtype(call)))


def _transpose(t: Translator, call: Call) -> list[ir.Value]:
    x, first, second = call.arguments
    order = list(range(len(t.shape(x))))
    order[first], order[second] = order[second], order[first]
    return t.op(call, "Transpose", t.value(x), perm=order)


def _slice(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, start, end, step = (*call.arguments, None, None, None, None)[:5]
    if t.shape(x) == t.shape(call.results[0]) and step in (None, 1):
        return [t.value(x)]
    if isinstance(start, Size) or isinstance(end, Size):
        raise UnsupportedModel(f"{call.scope} takes a slice that depends on the length of the input")
    bounds = [
        constant(t.graph, [each])
        for each in (start or 0, 2**63 - 1 if end is None else end, axis or 0, step or 1)
    ]
    return t.op(call, "Slice", t.value(x), *bounds)


def _split(t: Translator, call: Call) -> list[ir.Value]:
    axis = call.keywords.get("dim", call.arguments[2] if len(call.arguments) > 2 else 0)
    lengths = [t.shape(ref)[axis] for ref in call.results]
    return t.op(
        call,
        "Split",
        t.value(call.arguments[0]),
        constant(t.graph, lengths),
        axis=axis,
        num_outputs=len(lengths),
    )


def _broadcast(t: Translator, call: Call) -> list[ir.Value]:
    x, before, after = t.value(call.arguments[0]), t.shape(call.arguments[0]), t.shape(call.results[0])
    kept = [i >= 0 and before[i] == dim for i, dim in enumerate(after, len(before) - len(after))]
    if all(same or isinstance(dim, int) for same, dim in zip(kept, after, strict=True)):
        lengths = [1 if same else dim for same, dim in zip(kept, after, strict=True)]
        return t.op(call, "Expand", x, constant(t.graph, lengths))
    wanted = [
        constant(t.graph, [1]) if same else t.length(call, dim) for same, dim in zip(kept, after, strict=True)
    ]
    return t.op(call, "Expand", x, t.op(call, "Concat", *wanted, axis=0)[0])


def _concat(t: Translator, call: Call) -> list[ir.Value]:
    tensors, axis = (*call.arguments, 0)[:2]
    return t.op(call, "Concat", *(t.operand(call, each) for each in tensors), axis=axis)


def _stack(t: Translator, call: Call) -> list[ir.Value]:
    tensors, axis = (*call.arguments, 0)[:2]
    axis = axis if axis >= 0 else axis + len(t.shape(call.results[0]))
    parts = [t.op(call, "Unsqueeze", t.operand(call, each), constant(t.graph, [axis]))[0] for each in tensors]
    return t.op(call, "Concat", *parts, axis=axis)


def _unsqueeze(t: Translator, call: Call) -> list[ir.Value]:
    x, axis = call.arguments
    return t.op(call, "Unsqueeze", t.value(x), constant(t.graph, [axis]))


def _squeeze(t: Translator, call: Call) -> list[ir.Value]:
    x, axis = call.arguments
    return t.op(call, "Squeeze", t.value(x), constant(t.graph, [axis]))


def _select(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, index = call.arguments
    return t.op(call, "Gather", t.value(x), constant(t.graph, index), axis=axis)


def _permute(t: Translator, call: Call) -> list[ir.Value]:
    x, order = call.arguments
    return t.op(call, "Transpose", t.value(x), perm=list(order))


def _turned(t: Translator, call: Call) -> list[ir.Value]:
    return t.op(call, "Transpose", t.value(call.arguments[0]), perm=[1, 0])


def _zeros(t: Translator, call: Call) -> list[ir.Value]:
    lengths = [t.length(call, dim) for dim in call.arguments[0]]
    shape = t.op(call, "Concat", *lengths, axis=0)[0]
    return t.op(call, "Expand", constant(t.graph, [0], t.dtype(call)), shape)


def _filled_like(number: int) -> Translate:
    def translate(t: Translator, call: Call) -> list[ir.Value]:
        shape = t.op(call, "Shape", t.value(call.arguments[0]))[0]
        return t.op(call, "Expand", constant(t.graph, [number], t.dtype(call)), shape)

    return translate


TRANSLATIONS: dict[str, Translate] = {
    "aten::_unsafe_view": _reshape,
    "aten::cat": _concat,
    "aten::constant_pad_nd": _pad,
    "aten::expand": _broadcast,
    "aten::permute": _permute,
    "aten::select.int": _select,
    "aten::slice.Tensor": _slice,
    "aten::split.Tensor": _split,
    "aten::split_with_sizes": _split,
    "aten::squeeze": _reshape,
    "aten::squeeze.dim": _squeeze,
    "aten::stack": _stack,
    "aten::t": _turned,
    "aten::transpose.int": _transpose,
    "aten::unsqueeze": _unsqueeze,
    "aten::view": _reshape,
    "aten::zeros": _zeros,
    "aten::ones_like": _filled_like(1),
    "aten::zeros_like": _filled_like(0),
}
