"""What an initializer is made of: tensors of the checkpoint, concatenated, transposed, cast; read when it is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Read = Callable[[str], torch.Tensor]

_META = "gptport.weight"

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}


@dataclass(frozen=True)
class Weight:
    """Tensors of the checkpoint, concatenated along `axis` and then, if asked for, transposed."""

    names: tuple[str, ...]
    axis: int = 0
    transposed: bool = False

    def read(self, read: Read, dtype: torch.dtype) -> torch.Tensor:
        """The values, contiguous, in `dtype`."""
        parts = [read(name) for name in self.names]
        tensor = torch.cat(parts, self.axis) if len(parts) > 1 else parts[0]
        return (tensor.t() if self.transposed else tensor).to(dtype).contiguous()


def of(value: ir.Value) -> Weight:
    """The weight behind an initializer; by itself it is the checkpoint's tensor of that name."""
    weight = value.meta.get(_META)
    return weight if isinstance(weight, Weight) else Weight((str(value.name),))


def transpose(value: ir.Value) -> ir.Value:
    """A new initializer, the transpose of a matrix."""
    weight = of(value)
    assert value.shape is not None
    return _register(
        value,
        f"{value.name}.T",
        replace(weight, transposed=not weight.transposed),
        tuple(reversed(value.shape)),
    )


def concatenate(values: Sequence[ir.Value], axis: int, name: str) -> ir.Value:
    """A new initializer, several concatenated along `axis`."""
    shapes = [[int(dim) for dim in value.shape or ()] for value in values]  # type: ignore[arg-type]
    shape = [*shapes[0]]
    shape[axis] = sum(each[axis] for each in shapes)
    return _register(
        values[0], name, Weight(tuple(n for value in values for n in of(value).names), axis), shape
    )


def _register(like: ir.Value, name: str, weight: Weight, shape: Sequence[object]) -> ir.Value:
    graph = like.graph
    assert isinstance(graph, ir.Graph)
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, shape=ir.Shape(shape), type=like.type, const_value=like.const_value)  # type: ignore[arg-type]
    value.meta[_META] = weight
    graph.register_initializer(value)
    return value


def attach(graph: ir.Graph, read: Read, known: Callable[[str], bool], tied: Mapping[str, str]) -> None:
    """Give every initializer that is made of checkpoint tensors its values, which are read only when they are written.

    Args:
        graph: the graph.
        read: name of a parameter → its values.
        known: whether the checkpoint has a parameter of that name.
        tied: parameter → the parameter whose values it shares, for those that the checkpoint stores once.
    """
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor) or (
            _META not in value.meta and not is_parameter(value)
        ):
            continue
        weight = of(value)
        weight = replace(
            weight, names=tuple(n if known(n) or n not in tied else tied[n] for n in weight.names)
        )
        assert value.dtype is not None
        assert value.shape is not None
        value.const_value = ir.LazyTensor(
            _reader(weight, read, TORCH_DTYPES[value.dtype]), value.dtype, value.shape, name=value.name
        )


def is_parameter(value: ir.Value) -> bool:
    """Whether an initializer stands for a parameter of the model, as traced under fake tensors."""
    raw = getattr(value.const_value, "raw", None)
    return isinstance(raw, torch.Tensor)


def _reader(weight: Weight, read: Read, dtype: torch.dtype) -> Callable[[], ir.TensorProtocol]:
    def tensor() -> ir.TensorProtocol:
        values = weight.read(read, dtype)
        if dtype is torch.bfloat16:
            return ir.Tensor(values.view(torch.uint16).numpy(), dtype=ir.DataType.BFLOAT16)
        return ir.Tensor(values.numpy())

    return tensor
