"""ATen operators as ONNX operators: what is left of a model between the modules that were swapped.

`TRANSLATIONS` has a function for each operator that is understood. An operator that is not there stops the export with its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from .errors import UnsupportedModel
from .operators import DOMAIN
from .passes import constant
from .recording import Argument, Call, Ref, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from .recording import Recording

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.bool: ir.DataType.BOOL,
}


_NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}
"""Second operands that change nothing: many models have a multiplier that is 1 unless a checkpoint says otherwise."""

_INPUT_AXES = {"batch": 0, "sequence": 1}
"""The axes of the first input, `input_ids`."""


@dataclass(frozen=True)
class Translator:
    """Appends the nodes of a recording to a graph.

    Attributes:
        graph: where the nodes go.
        recording: what is translated.
        values: tensor number → value, of everything translated so far.
    """

    graph: ir.Graph
    recording: Recording
    values: dict[int, ir.Value]

    def translate(self, call: Call) -> None:
        """Append the nodes of a call.

        Raises:
            UnsupportedModel: the operator has no translation.
        """
        domain, operator = call.operator.split("::")
        if domain != "aten":
            self._ours(call, domain, operator)
        elif call.operator in TRANSLATIONS:
            results = TRANSLATIONS[call.operator](self, call)
            for ref, value in zip(call.results, results, strict=True):
                self._describe(ref, value)
        else:
            raise UnsupportedModel(
                f"{call.scope or 'the model'} computes {call.operator}, which gptport has no ONNX operator for"
            )

    def op(
        self, call: Call, op_type: str, *inputs: ir.Value | None, num_outputs: int = 1, **attributes: Any
    ) -> list[ir.Value]:
        """Append a node of the standard domain."""
        node = ir.node(
            op_type, list(inputs), attributes, num_outputs=num_outputs, metadata_props={"scope": call.scope}
        )
        self.graph.append(node)
        return list(node.outputs)

    def value(self, argument: Argument) -> ir.Value:
        """The value of a tensor argument."""
        if not isinstance(argument, Ref):
            raise UnsupportedModel(f"a tensor was expected, not {argument!r}")
        number = argument.number
        if number not in self.values:
            tensor = self.recording.constants.get(number)
            if tensor is None:
                raise UnsupportedModel(
                    "the model has a buffer of its own that is no parameter, which gptport cannot export yet"
                )
            self.values[number] = constant(
                self.graph, tensor.numpy(), DTYPES[tensor.dtype], name=f"constant.{number}"
            )
        return self.values[number]

    def operand(self, call: Call, argument: Argument) -> ir.Value:
        """An operand of arithmetic, in the dtype of the result: ONNX mixes no dtypes where torch does."""
        dtype = _dtype(self, call)
        if isinstance(argument, int | float):
            return constant(self.graph, argument, dtype)
        value = self.value(argument)
        return value if value.dtype == dtype else self.op(call, "Cast", value, to=dtype)[0]

    def length(self, call: Call, dim: int | Size) -> ir.Value:
        """A length as a tensor [1]: a constant, or the batch or sequence of the input."""
        if isinstance(dim, int):
            return constant(self.graph, [dim])
        if dim.name not in _INPUT_AXES:
            raise UnsupportedModel(
                f"{call.scope} computes with a length that is neither the batch nor the sequence ({dim.name})"
            )
        axis = _INPUT_AXES[dim.name]
        found = self.op(call, "Shape", self.graph.inputs[0], start=axis, end=axis + 1)[0]
        return found if dim.times == 1 else self.op(call, "Mul", found, constant(self.graph, [dim.times]))[0]

    def shape(self, ref: Ref) -> tuple[int | Size, ...]:
        """The shape of a tensor."""
        return self.recording.shapes[ref.number]

    def _ours(self, call: Call, domain: str, operator: str) -> None:
        node = ir.node(
            operator,
            [self.value(argument) for argument in call.arguments],
            dict(call.keywords),
            domain=domain,
            num_outputs=len(call.results),
            metadata_props={"scope": call.scope},
        )
        self.graph.append(node)
        for ref, value in zip(call.results, node.outputs, strict=True):
            self._describe(ref, value)

    def _describe(self, ref: Ref, value: ir.Value) -> None:
        self.values[ref.number] = value
        if value.shape is None:
            value.shape = symbolic_shape(self.shape(ref))
            value.type = ir.TensorType(DTYPES[self.recording.dtypes[ref.number]])


def symbolic_shape(shape: tuple[int | Size, ...]) -> ir.Shape:
    """As ONNX says it, sizes by name."""
    return ir.Shape([_label(dim) if isinstance(dim, Size) else dim for dim in shape])


def _label(size: Size) -> str:
    return size.name if size.times == 1 else f"{size.times}*{size.name}"


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


def _embedding(t: Translator, call: Call) -> list[ir.Value]:
    weight, ids = (t.value(argument) for argument in call.arguments[:2])
    return t.op(call, "Gather", weight, ids, axis=0)


def _broadcast(t: Translator, call: Call) -> list[ir.Value]:
    x, before, after = t.value(call.arguments[0]), t.shape(call.arguments[0]), t.shape(call.results[0])
    wanted = [
        constant(t.graph, [1]) if i >= 0 and before[i] == dim else t.length(call, dim)
        for i, dim in enumerate(after, len(before) - len(after))
    ]
    return t.op(call, "Expand", x, t.op(call, "Concat", *wanted, axis=0)[0])


def _index_select(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, index = call.arguments
    return t.op(call, "Gather", t.value(x), t.value(index), axis=axis)


def _concat(t: Translator, call: Call) -> list[ir.Value]:
    tensors, axis = (*call.arguments, 0)[:2]
    return t.op(call, "Concat", *(t.operand(call, each) for each in tensors), axis=axis)


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


def _mean(t: Translator, call: Call) -> list[ir.Value]:
    x, axes, keep = (*call.arguments, False)[:3]
    return t.op(call, "ReduceMean", t.operand(call, x), constant(t.graph, list(axes)), keepdims=int(keep))


def _rsqrt(t: Translator, call: Call) -> list[ir.Value]:
    return t.op(call, "Reciprocal", t.op(call, "Sqrt", t.value(call.arguments[0]))[0])


def _layer_norm(t: Translator, call: Call) -> list[ir.Value]:
    """Only of the last axis; a norm without a weight gets one of ones."""
    x, axes, weight, bias, epsilon = call.arguments
    if len(axes) > 1:
        raise UnsupportedModel(f"{call.scope} normalizes over {len(axes)} axes")
    scale = (
        t.operand(call, weight)
        if weight is not None
        else constant(t.graph, [1.0] * axes[0], _dtype(t, call), name=f"ones.{axes[0]}")
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


def _turned(t: Translator, call: Call) -> list[ir.Value]:
    return t.op(call, "Transpose", t.value(call.arguments[0]), perm=[1, 0])


def _softmax(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, *_ = call.arguments
    return t.op(call, "Softmax", t.operand(call, x), axis=axis)


def _topk(t: Translator, call: Call) -> list[ir.Value]:
    x, count, axis = (*call.arguments, -1)[:3]
    return t.op(call, "TopK", t.value(x), constant(t.graph, [count]), axis=axis, num_outputs=2)


def _sum(t: Translator, call: Call) -> list[ir.Value]:
    x, axes, keep = (*call.arguments, False)[:3]
    return t.op(call, "ReduceSum", t.operand(call, x), constant(t.graph, list(axes)), keepdims=int(keep))


def _gather(t: Translator, call: Call) -> list[ir.Value]:
    x, axis, index = call.arguments
    return t.op(call, "GatherElements", t.value(x), t.value(index), axis=axis)


def _scatter(t: Translator, call: Call) -> list[ir.Value]:
    """One number at the indices along an axis."""
    x, axis, index, number = call.arguments
    shape = t.op(call, "Shape", t.value(index))[0]
    numbers = t.op(call, "Expand", constant(t.graph, [number], _dtype(t, call)), shape)[0]
    return t.op(call, "ScatterElements", t.value(x), t.value(index), numbers, axis=axis)


def _masked_fill(t: Translator, call: Call) -> list[ir.Value]:
    x, mask, number = call.arguments
    return t.op(call, "Where", t.value(mask), constant(t.graph, number, _dtype(t, call)), t.operand(call, x))


def _zeros_like(t: Translator, call: Call) -> list[ir.Value]:
    shape = t.op(call, "Shape", t.value(call.arguments[0]))[0]
    return t.op(call, "Expand", constant(t.graph, [0], _dtype(t, call)), shape)


def _clamp(t: Translator, call: Call) -> list[ir.Value]:
    x, *bounds = call.arguments
    limits = [None if each is None else constant(t.graph, each, _dtype(t, call)) for each in bounds]
    return t.op(call, "Clip", t.operand(call, x), *limits)


def _silu(t: Translator, call: Call) -> list[ir.Value]:
    x = t.value(call.arguments[0])
    return t.op(call, "Mul", x, t.op(call, "Sigmoid", x)[0])


def _softplus(t: Translator, call: Call) -> list[ir.Value]:
    if call.arguments[1:] != ():
        raise UnsupportedModel(f"{call.scope} computes {call.operator} with {call.arguments[1:]}")
    return t.op(call, "Softplus", t.value(call.arguments[0]))


def _dtype(t: Translator, call: Call) -> ir.DataType:
    return DTYPES[t.recording.dtypes[call.results[0].number]]


TRANSLATIONS: dict[str, Callable[[Translator, Call], list[ir.Value]]] = {
    "aten::_softmax": _softmax,
    "aten::_to_copy": _cast,
    "aten::_unsafe_view": _reshape,
    "aten::add.Tensor": _elementwise("Add"),
    "aten::addmm": _addmm,
    "aten::alias": _same,
    "aten::bitwise_not": _elementwise("Not"),
    "aten::cat": _concat,
    "aten::clamp": _clamp,
    "aten::clone": _same,
    "aten::detach": _same,
    "aten::div.Tensor": _elementwise("Div"),
    "aten::embedding": _embedding,
    "aten::expand": _broadcast,
    "aten::floor": _elementwise("Floor"),
    "aten::gather": _gather,
    "aten::index_select": _index_select,
    "aten::log": _elementwise("Log"),
    "aten::masked_fill.Scalar": _masked_fill,
    "aten::mean.dim": _mean,
    "aten::mm": _mm,
    "aten::mul.Tensor": _elementwise("Mul"),
    "aten::native_layer_norm": _layer_norm,
    "aten::neg": _elementwise("Neg"),
    "aten::permute": _permute,
    "aten::pow.Tensor_Scalar": _elementwise("Pow"),
    "aten::relu": _elementwise("Relu"),
    "aten::rsqrt": _rsqrt,
    "aten::scatter.value": _scatter,
    "aten::select.int": _select,
    "aten::sigmoid": _elementwise("Sigmoid"),
    "aten::silu": _silu,
    "aten::slice.Tensor": _slice,
    "aten::softplus": _softplus,
    "aten::split.Tensor": _split,
    "aten::split_with_sizes": _split,
    "aten::squeeze": _reshape,
    "aten::squeeze.dim": _squeeze,
    "aten::sub.Tensor": _elementwise("Sub"),
    "aten::sum.dim_IntList": _sum,
    "aten::t": _turned,
    "aten::tanh": _elementwise("Tanh"),
    "aten::topk": _topk,
    "aten::transpose.int": _transpose,
    "aten::unsqueeze": _unsqueeze,
    "aten::view": _reshape,
    "aten::zeros_like": _zeros_like,
}
