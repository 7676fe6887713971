"""Operators that add along an axis: products, sums, means, softmax and norms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..errors import UnsupportedModel
from ..operators import DOMAIN
from ..passes import constant

if TYPE_CHECKING:
    from ..recording import Call
    from .translator import Translate, Translator


def _mean(t: Translator, call: Call) -> list[ir.Value]:
    x, axes, keep = (*call.arguments, False)[:3]
    return t.op(call, "ReduceMean", t.operand(call, x), constant(t.graph, list(axes)), keepdims=int(keep))


def _layer_norm(t: Translator, call: Call) -> list[ir.Value]:
    """Only of the last axis; a norm without a weight gets one of ones."""
    x, axes, weight, bias, epsilon = call.arguments
    if len(axes) > 1:
        raise UnsupportedModel(f"{call.scope} normalizes over {len(axes)} axes")
    scale = (
        t.operand(call, weight)
        if weight is not None
        else constant(t.graph, [1.0] * axes[0], t.dtype(call), name=f"ones.{axes[0]}")
    )
    shift = [] if bias is None else [t.operand(call, bias)]
    attributes = {"kind": "layer", "epsilon": epsilon, "offset": 0.0}
    norm = ir.node(
        "Norm", [t.value(x), scale, *shift], attributes, domain=DOMAIN, metadata_props={"scope": call.scope}
    )
    t.graph.append(norm)
    return [*norm.outputs, *(ir.Value() for _ in call.results[1:])]


def _mm(t: Translator, call: Call) -> list[ir.Value]:
    return t.op(call, "MatMul", *(t.operand(call, each) for each in call.arguments))


def _addmm(t: Translator, call: Call) -> list[ir.Value]:
    bias, *matrices = (t.operand(call, each) for each in call.arguments)
    return t.op(call, "Gemm", *matrices, bias)


def _softmax(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, *_ = call.arguments
    return t.op(call, "Softmax", t.operand(call, x), axis=axis)


def _sum(t: Translator, call: Call) -> list[ir.Value]:
    x, axes, keep = (*call.arguments, False)[:3]
    return t.op(call, "ReduceSum", t.operand(call, x), constant(t.graph, list(axes)), keepdims=int(keep))


def _vector_norm(t: Translator, call: Call) -> list[ir.Value]:
    x, order, axes, keep = (*call.arguments, None, False)[:4]
    if order not in (1, 2) or axes is None:
        raise UnsupportedModel(f"{call.scope} computes a norm of order {order}")
    return t.op(
        call, f"ReduceL{order:g}", t.operand(call, x), constant(t.graph, list(axes)), keepdims=int(keep)
    )


TRANSLATIONS: dict[str, Translate] = {
    "aten::_softmax": _softmax,
    "aten::addmm": _addmm,
    "aten::linalg_vector_norm": _vector_norm,
    "aten::mean.dim": _mean,
    "aten::mm": _mm,
    "aten::native_layer_norm": _layer_norm,
    "aten::sum.dim_IntList": _sum,
}
