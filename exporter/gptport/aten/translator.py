"""What the translations of ATen operators share: the graph that they append to, its values, dtypes and lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from ..errors import UnsupportedModel
from ..passes import constant
from ..recording import Argument, Call, Ref, Size

if TYPE_CHECKING:
    from ..recording import Recording

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.bool: ir.DataType.BOOL,
}


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
        dtype = self.dtype(call)
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

    def dtype(self, call: Call) -> ir.DataType:
        """Of a call's first result."""
        return DTYPES[self.recording.dtypes[call.results[0].number]]

    def shape(self, ref: Ref) -> tuple[int | Size, ...]:
        """The shape of a tensor."""
        return self.recording.shapes[ref.number]

    def ours(self, call: Call, domain: str, operator: str) -> None:
        """Append an operator of another domain as it is."""
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
            self.describe(ref, value)

    def describe(self, ref: Ref, value: ir.Value) -> None:
        """Say which tensor of the recording a value is."""
        self.values[ref.number] = value
        if value.shape is None:
            value.shape = symbolic_shape(self.shape(ref))
            value.type = ir.TensorType(DTYPES[self.recording.dtypes[ref.number]])


def symbolic_shape(shape: tuple[int | Size, ...]) -> ir.Shape:
    """As ONNX says it, sizes by name."""
    return ir.Shape([_label(dim) if isinstance(dim, Size) else dim for dim in shape])


def _label(size: Size) -> str:
    return size.name if size.times == 1 else f"{size.times}*{size.name}"


Translate = Callable[[Translator, Call], list[ir.Value]]
"""Appends the nodes of one call; the values of its results."""
