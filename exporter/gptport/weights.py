"""What an initializer is made of: tensors of the checkpoint, joined, transposed, cast, quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch

from . import pieces
from .quantize import blocks_of, zero_points_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .precision import Quantization

    Read = Callable[[str], torch.Tensor]

_META = "gptport.weight"


@dataclass(frozen=True)
class Weight:
    """Tensors of the checkpoint, concatenated along `axis`, rearranged, then transposed if asked for, and `offset` added.

    Of several `experts`, whose rows lie below each other in each tensor, the first axis becomes two, before all that.

    `order` are the indices along `axis` that are taken; none stands for all, as they are.
    Transposed are the last two axes; `interleaved` lets the halves of the second axis alternate then, element by element.
    """

    names: tuple[str, ...]
    axis: int = 0
    order: tuple[int, ...] = ()
    transposed: bool = False
    offset: float = 0.0
    interleaved: bool = False
    experts: int = 0

    def shape(self, parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The shape that tensors of these shapes make; () if they do not fit together."""
        if self.experts:
            parts = [(self.experts, part[0] // self.experts, *part[1:]) for part in parts]
        first = list(parts[0])
        if any(
            part[: self.axis] + part[self.axis + 1 :] != parts[0][: self.axis] + parts[0][self.axis + 1 :]
            for part in parts
        ):
            return ()
        if len(parts) > 1 or self.order:  # one number has no axes
            first[self.axis] = len(self.order) or sum(part[self.axis] for part in parts)
        return (*first[:-2], first[-1], first[-2]) if self.transposed else tuple(first)

    def pieces(self, read: Read, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The values in `dtype`, one contiguous piece after the other; each is valid until the next is asked for."""
        parts = [read(name) for name in self.names]
        in_turn = self == Weight(self.names, self.axis, transposed=self.transposed) and self.axis == 0
        if not in_turn or parts[0].ndim != 2 or not all(part.is_floating_point() for part in parts):
            yield self.read(read, dtype)
        elif self.transposed:
            yield from pieces.columns(parts, dtype)
        else:
            yield from pieces.rows(parts, dtype)

    def read(self, read: Read, dtype: torch.dtype) -> torch.Tensor:
        """The values, contiguous, in `dtype`."""
        parts = [read(name) for name in self.names]
        parts = [part.unflatten(0, (self.experts, -1)) for part in parts] if self.experts else parts
        tensor = torch.cat(parts, self.axis) if len(parts) > 1 else parts[0]
        tensor = tensor.index_select(self.axis, torch.tensor(self.order)) if self.order else tensor
        tensor = tensor.mT if self.transposed else tensor
        tensor = tensor.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) if self.interleaved else tensor
        return (tensor.float() + self.offset if self.offset else tensor).to(dtype).contiguous()


@dataclass(frozen=True)
class Part:
    """A part of a matrix [N, K], or of several [E, N, K], in integers: `attribute` of their `quantize.Blocks`.

    With `smoothing`, what its input features are multiplied by: of its `row_scales.Rows`.
    """

    weight: Weight
    shape: tuple[int, ...]
    quantization: Quantization
    attribute: str
    smoothing: tuple[float, ...] = ()


def parameter(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    """A new initializer, the parameter of that name; it gets its values from `attach`."""
    return _register(graph, name, Weight((name,)), dtype, shape)


def of(value: ir.Value) -> Weight:
    """The weight behind an initializer."""
    weight = value.meta[_META]
    assert isinstance(weight, Weight)
    return weight


def recipe_of(value: ir.Value) -> Weight | Part | None:
    """What an initializer is made of; None for a constant."""
    recipe: Weight | Part | None = value.meta.get(_META)
    return recipe


def names(value: ir.Value) -> tuple[str, ...]:
    """The parameters that an initializer is made of; none for a constant."""
    recipe = recipe_of(value)
    return () if recipe is None else (recipe.weight if isinstance(recipe, Part) else recipe).names


def transpose(value: ir.Value) -> ir.Value:
    """A new initializer, the transpose of a matrix."""
    weight = of(value)
    return _like(
        value, f"{value.name}.T", replace(weight, transposed=not weight.transposed), shape(value)[::-1]
    )


def of_experts(value: ir.Value, *, transposed: bool = False, interleave: bool = False) -> ir.Value:
    """A new initializer [E,out,in] or [E,out] of the same experts, from [E,in,out] if `transposed`."""
    whole = shape(value)
    dims = (whole[0], whole[2], whole[1]) if transposed else whole
    recipe = replace(of(value), transposed=transposed, interleaved=interleave)
    return (
        _like(value, f"{value.name}{'.T' * transposed}{'.interleaved' * interleave}", recipe, dims)
        if (transposed or interleave)
        else value
    )


def apart(values: Sequence[ir.Value], experts: int) -> ir.Value:
    """A new initializer [E,n·rows,in] of the matrices of the same experts, which lie below each other in each, [E·rows,in]."""
    rows, width = shape(values[0])
    recipe = Weight(tuple(n for value in values for n in of(value).names), axis=1, experts=experts)
    dims = (experts, len(values) * rows // experts, width)
    return _like(values[0], f"{'+'.join(str(value.name) for value in values)}.apart", recipe, dims)


def offset(value: ir.Value, by: float) -> ir.Value:
    """A new initializer, a number added to every element; the same if it is 0."""
    return (
        value
        if by == 0
        else _like(value, f"{value.name}+{by:g}", replace(of(value), offset=by), shape(value))
    )


def concatenate(values: Sequence[ir.Value], axis: int, name: str) -> ir.Value:
    """A new initializer, several concatenated along `axis`."""
    whole = list(shape(values[0]))
    whole[axis] = sum(shape(value)[axis] for value in values)
    return _like(values[0], name, Weight(tuple(n for value in values for n in of(value).names), axis), whole)


def take(value: ir.Value, axis: int, order: NDArray[np.int64]) -> ir.Value:
    """A new initializer, the slices at the indices `order` along `axis`."""
    dims = list(shape(value))
    dims[axis] = order.size
    recipe = replace(of(value), axis=axis, order=tuple(order.tolist()))
    return _like(value, f"{value.name}.arranged", recipe, dims)


def is_parameter(value: ir.Value) -> bool:
    """Whether an initializer is made of parameters alone, as they are in the checkpoint."""
    return isinstance(recipe_of(value), Weight)


def in_blocks(
    value: ir.Value, quantization: Quantization, *, for_rows: bool = False
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """New initializers that store a matrix [N, K] in integers: packed, scales and, unless it is symmetric, zero points.

    They have the shapes of `quantize.Blocks`; `for_rows` gives the scales and the zero points of 8-bit blocks three axes, so that
    rows can be gathered from the same packed matrix. Those of the matrices [E, N, K] of experts have E in front, and the bytes of
    a row in one axis.
    """
    (*experts, n, k), dtype = shape(value), value.dtype
    assert dtype is not None
    count = blocks_of(k, quantization)
    width = zero_points_width(k, quantization)
    kind = f"{value.name}.{quantization.bits}bit"
    last, suffix = ((1,), ".rows") if for_rows else ((), "")
    zero_dtype = dtype if quantization.algorithm == "hqq" else ir.DataType.UINT8
    size = quantization.block_size * quantization.bits // 8
    whole = (*experts, n, count * size) if experts else (n, count, size)

    def part(attribute: str, suffix: str, dtype: ir.DataType, dims: Sequence[int]) -> ir.Value:
        assert isinstance(value.graph, ir.Graph)
        recipe = Part(of(value), (*experts, n, k), quantization, attribute)
        return _register(value.graph, f"{kind}.{attribute}{suffix}", recipe, dtype, dims)

    packed = part("packed", "", ir.DataType.UINT8, whole)
    scales = part("scales", suffix, dtype, (*experts, n, count, *last))
    if quantization.symmetric:
        return packed, scales, None
    return packed, scales, part("zero_points", suffix, zero_dtype, (*experts, n, width, *last))


def by_rows(
    value: ir.Value, quantization: Quantization, smoothing: tuple[float, ...]
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """New initializers that store a matrix [N, K] as `row_scales.Rows`: packed, scales and factors."""
    n, k = shape(value)

    def part(attribute: str, dtype: ir.DataType, dims: Sequence[int]) -> ir.Value:
        assert isinstance(value.graph, ir.Graph)
        recipe = Part(of(value), (n, k), quantization, attribute, smoothing)
        return _register(value.graph, f"{value.name}.by_rows.{attribute}", recipe, dtype, dims)

    return (
        part("packed", ir.DataType.INT8, (k, n)),
        part("scales", ir.DataType.FLOAT, (n,)),
        part("factors", ir.DataType.FLOAT, (k,)),
    )


def shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of an initializer."""
    return tuple(int(dim) for dim in value.shape or ())  # type: ignore[arg-type]


def _like(value: ir.Value, name: str, weight: Weight, dims: Sequence[int]) -> ir.Value:
    assert isinstance(value.graph, ir.Graph)
    assert value.dtype is not None
    return _register(value.graph, name, weight, value.dtype, dims)


def _register(
    graph: ir.Graph, name: str, recipe: Weight | Part, dtype: ir.DataType, dims: Sequence[int]
) -> ir.Value:
    if name not in graph.initializers:
        placeholder = ir.LazyTensor(_unattached, dtype, ir.Shape(dims), name=name)
        value = ir.Value(name=name, shape=ir.Shape(dims), type=ir.TensorType(dtype), const_value=placeholder)
        value.meta[_META] = recipe
        graph.register_initializer(value)
    return graph.initializers[name]


def renamed(value: ir.Value, name: str) -> ir.Value:
    """A new initializer like another, for the parameter of another name."""
    return _like(value, name, Weight((name,)), shape(value))


def _unattached() -> ir.TensorProtocol:
    raise AssertionError("a weight was read before it was attached to a checkpoint")
