"""Operators that work element by element, broadcasting as ONNX does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UnsupportedModel
from ..passes import constant

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from ..recording import Call
    from .translator import Translate, Translator


_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
"""Second operands that change nothing: many models have a multiplier that is 1 unless a checkpoint says otherwise."""


def _elementwise(op_type: str) -> Callable[[Translator, Call], list[ir.Value]]:
    def translate(t: Translator, call: Call) -> list[ir.Value]:
        if call.keywords.get("alpha", 1) != 1:
            raise UnsupportedModel(
                f"{call.scope} computes {call.operator} with alpha = {call.keywords['alpha']}"
            )
        if call.arguments[1:] == (_NEUTRAL.get(op_type),):
            return [t.operand(call, call.arguments[0])]
        return t.op(call, op_type, *(t.operand(call, argument) for argument in call.arguments))

    return translate


def _same(t: Translator, call: Call) -> list[ir.Value]:
    return [t.value(call.arguments[0])]


def _cast(t: Translator, call: Call) -> list[ir.Value]:
    return [t.operand(call, call.arguments[0])]


def _rsqrt(t: Translator, call: Call) -> list[ir.Value]:
    return t.op(call, "Reciprocal", t.op(call, "Sqrt", t.value(call.arguments[0]))[0])


def _masked_fill(t: Translator, call: Call) -> list[ir.Value]:
    x, mask, number = call.arguments
    return t.op(call, "Where", t.value(mask), constant(t.graph, number, t.dtype(call)), t.operand(call, x))


def _clamp(t: Translator, call: Call) -> list[ir.Value]:
    x, *bounds = call.arguments
    limits = [None if each is None else constant(t.graph, each, t.dtype(call)) for each in bounds]
    return t.op(call, "Clip", t.operand(call, x), *limits)


def _clamp_to_tensors(t: Translator, call: Call) -> list[ir.Value]:
    x, lowest, highest = (*call.arguments, None, None)[:3]
    found = t.operand(call, x)
    for op_type, bound in (("Max", lowest), ("Min", highest)):
        if bound is not None:
            (found,) = t.op(call, op_type, found, t.operand(call, bound))
    return [found]


def _comparison(op_type: str) -> Translate:
    """In the dtype of the first operand."""

    def translate(t: Translator, call: Call) -> list[ir.Value]:
        first, second = call.arguments
        left = t.value(first)
        assert left.dtype is not None
        if isinstance(second, int | float):
            return t.op(call, op_type, left, constant(t.graph, second, left.dtype))
        right = t.value(second)
        if right.dtype != left.dtype:
            right = t.op(call, "Cast", right, to=left.dtype)[0]
        return t.op(call, op_type, left, right)

    return translate


def _where(t: Translator, call: Call) -> list[ir.Value]:
    mask, first, second = call.arguments
    return t.op(call, "Where", t.value(mask), t.operand(call, first), t.operand(call, second))


def _expm1(t: Translator, call: Call) -> list[ir.Value]:
    (power,) = t.op(call, "Exp", t.operand(call, call.arguments[0]))
    return t.op(call, "Sub", power, constant(t.graph, 1, t.dtype(call)))


def _log1p(t: Translator, call: Call) -> list[ir.Value]:
    (more,) = t.op(call, "Add", t.operand(call, call.arguments[0]), constant(t.graph, 1, t.dtype(call)))
    return t.op(call, "Log", more)


def _gelu(t: Translator, call: Call) -> list[ir.Value]:
    approximate = call.keywords.get("approximate", "none")
    return t.op(call, "Gelu", t.value(call.arguments[0]), approximate=approximate)


def _silu(t: Translator, call: Call) -> list[ir.Value]:
    x = t.value(call.arguments[0])
    return t.op(call, "Mul", x, t.op(call, "Sigmoid", x)[0])


def _softplus(t: Translator, call: Call) -> list[ir.Value]:
    if call.arguments[1:] != ():
        raise UnsupportedModel(f"{call.scope} computes {call.operator} with {call.arguments[1:]}")
    return t.op(call, "Softplus", t.value(call.arguments[0]))


_COMPARISONS = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"}

TRANSLATIONS: dict[str, Translate] = {
    **{
        f"aten::{name}.{kind}": _comparison(op_type)
        for name, op_type in _COMPARISONS.items()
        for kind in ("Scalar", "Tensor")
    },
    "aten::abs": _elementwise("Abs"),
    "aten::clamp.Tensor": _clamp_to_tensors,
    "aten::exp": _elementwise("Exp"),
    "aten::expm1": _expm1,
    "aten::gelu": _gelu,
    "aten::maximum": _elementwise("Max"),
    "aten::minimum": _elementwise("Min"),
    "aten::where.self": _where,
    "aten::_to_copy": _cast,
    "aten::add.Tensor": _elementwise("Add"),
    "aten::alias": _same,
    "aten::bitwise_not": _elementwise("Not"),
    "aten::clamp": _clamp,
    "aten::clone": _same,
    "aten::detach": _same,
    "aten::div.Tensor": _elementwise("Div"),
    "aten::floor": _elementwise("Floor"),
    "aten::log": _elementwise("Log"),
    "aten::log1p": _log1p,
    "aten::masked_fill.Scalar": _masked_fill,
    "aten::mul.Tensor": _elementwise("Mul"),
    "aten::neg": _elementwise("Neg"),
    "aten::pow.Tensor_Scalar": _elementwise("Pow"),
    "aten::relu": _elementwise("Relu"),
    "aten::rsqrt": _rsqrt,
    "aten::sigmoid": _elementwise("Sigmoid"),
    "aten::silu": _silu,
    "aten::softplus": _softplus,
    "aten::sub.Tensor": _elementwise("Sub"),
    "aten::tanh": _elementwise("Tanh"),
}
