"""What an initializer is made of: tensors of the checkpoint, concatenated, transposed, cast; read when it is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir
import torch

from .errors import CheckpointError

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
    """Tensors of the checkpoint, concatenated along `axis`, then transposed if asked for, and `offset` added."""

    names: tuple[str, ...]
    axis: int = 0
    transposed: bool = False
    offset: float = 0.0

    def shape(self, parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape that tensors of these shapes make; () if they do not fit together."""
        first = list(parts[0])
        if any(
            part[: self.axis] + part[self.axis + 1 :] != parts[0][: self.axis] + parts[0][self.axis + 1 :]
            for part in parts
        ):
            return ()
        first[self.axis] = sum(part[self.axis] for part in parts)
        return tuple(reversed(first) if self.transposed else first)

    def read(self, read: Read, dtype: torch.dtype) -> torch.Tensor:
        """The values, contiguous, in `dtype`."""
        parts = [read(name) for name in self.names]
        tensor = torch.cat(parts, self.axis) if len(parts) > 1 else parts[0]
        tensor = tensor.t() if self.transposed else tensor
        return (tensor.float() + self.offset if self.offset else tensor).to(dtype).contiguous()


def parameter(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """A new initializer, the parameter of that name; it gets its values from `attach`."""
    return _register(graph, name, Weight((name,)), dtype, shape)


def of(value: ir.Value) -> Weight:
    """The weight behind an initializer."""
    weight = value.meta[_META]
    assert isinstance(weight, Weight)
    return weight


def transpose(value: ir.Value) -> ir.Value:
    """A new initializer, the transpose of a matrix."""
    weight, shape = of(value), _shape(value)
    return _like(value, f"{value.name}.T", replace(weight, transposed=not weight.transposed), shape[::-1])


def offset(value: ir.Value, by: float) -> ir.Value:
    """A new initializer, a number added to every element; the same if it is 0."""
    return (
        value
        if by == 0
        else _like(value, f"{value.name}+{by:g}", replace(of(value), offset=by), _shape(value))
    )


def concatenate(values: Sequence[ir.Value], axis: int, name: str) -> ir.Value:
    """A new initializer, several concatenated along `axis`."""
    shape = list(_shape(values[0]))
    shape[axis] = sum(_shape(value)[axis] for value in values)
    return _like(values[0], name, Weight(tuple(n for value in values for n in of(value).names), axis), shape)


class Source(Protocol):
    """Where the values of parameters are: a Checkpoint."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""

    def tensor(self, name: str) -> torch.Tensor:
        """Its values."""


def attach(graph: ir.Graph, source: Source, aliases: Mapping[str, Sequence[str]]) -> None:
    """Give every initializer that is made of parameters its values, which are read only when they are written.

    Args:
        graph: the graph.
        source: where the values are.
        aliases: parameter → other names of the same values.

    Raises:
        CheckpointError: the checkpoint lacks a parameter, or has it in another shape.
    """
    for value in graph.initializers.values():
        if _META in value.meta:
            weight = of(value)
            names = tuple(
                next((n for n in (name, *aliases.get(name, ())) if n in source), name)
                for name in weight.names
            )
            weight = replace(weight, names=names)
            found, wanted = weight.shape([source.shape(name) for name in names]), _shape(value)
            if found != wanted:
                raise CheckpointError(
                    f"{' + '.join(names)} has shape {list(found)} in the checkpoint, and {list(wanted)} by its configuration; "
                    "its weights and its config.json are not of the same model"
                )
            assert value.dtype is not None
            reader = _reader(weight, source.tensor, TORCH_DTYPES[value.dtype])
            value.const_value = ir.LazyTensor(reader, value.dtype, ir.Shape(wanted), name=value.name)


def _reader(weight: Weight, read: Read, dtype: torch.dtype) -> Callable[[], ir.TensorProtocol]:
    def tensor() -> ir.TensorProtocol:
        values = weight.read(read, dtype)
        if dtype is torch.bfloat16:
            return ir.Tensor(values.view(torch.uint16).numpy(), dtype=ir.DataType.BFLOAT16)
        return ir.Tensor(values.numpy())

    return tensor


def _shape(value: ir.Value) -> tuple[int, ...]:
    return tuple(int(dim) for dim in value.shape or ())  # type: ignore[arg-type]


def _like(value: ir.Value, name: str, weight: Weight, shape: Sequence[int]) -> ir.Value:
    assert isinstance(value.graph, ir.Graph)
    assert value.dtype is not None
    return _register(value.graph, name, weight, value.dtype, shape)


def _register(
    graph: ir.Graph, name: str, weight: Weight, dtype: ir.DataType, shape: Sequence[int]
) -> ir.Value:
    if name not in graph.initializers:
        placeholder = ir.LazyTensor(_unattached, dtype, ir.Shape(shape), name=name)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=placeholder)
        value.meta[_META] = weight
        graph.register_initializer(value)
    return graph.initializers[name]


def renamed(value: ir.Value, name: str) -> ir.Value:
    """A new initializer like another, for the parameter of another name."""
    return _like(value, name, Weight((name,)), _shape(value))


def _unattached() -> ir.TensorProtocol:
    raise AssertionError("a weight was read before it was attached to a checkpoint")
