"""The values of initializers: read from the checkpoint, and quantized, when the file is written."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import onnx_ir as ir
import torch

from .errors import CheckpointError
from .quantize import Blocks, LazyIntegers, concatenated, gptq, quantize
from .row_scales import Rows, by_rows
from .weights import Part, Weight, recipe_of, shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from .precision import Quantization
    from .weights import Read

TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}


class Source(Protocol):
    """Where the values of parameters are: a Checkpoint."""

    def __contains__(self, name: str) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter."""

    def tensor(self, name: str) -> torch.Tensor:
        """Its values."""

    def blocks(self, name: str, quantization: Quantization) -> Blocks | None:
        """Its values in integers, if they are stored so."""


def attach(
    graph: ir.Graph,
    source: Source,
    aliases: Mapping[str, Sequence[str]],
    hessians: Mapping[str, torch.Tensor] | None = None,
) -> set[str]:
    """Give every initializer that is made of parameters its values, which are read only when they are written.

    Returns the names of these parameters, as the source has them.

    Args:
        graph: the graph.
        source: where the values are.
        aliases: parameter → other names of the same values.
        hessians: parameter → what gptq needs; see `calibration`.

    Raises:
        CheckpointError: the checkpoint lacks a parameter, or has it in another shape.
    """
    lazy: dict[tuple[Weight, Quantization, tuple[float, ...]], LazyIntegers] = {}
    read: set[str] = set()
    for value in graph.initializers.values():
        recipe = recipe_of(value)
        if recipe is None:
            continue
        weight = recipe if isinstance(recipe, Weight) else recipe.weight
        weight = as_stored(
            weight, source, aliases, recipe.shape if isinstance(recipe, Part) else shape(value)
        )
        read.update(weight.names)
        assert value.dtype is not None
        if isinstance(recipe, Part):
            make = partial(_in_integers, weight, source, recipe, hessians or {})
            matrix = lazy.setdefault((weight, recipe.quantization, recipe.smoothing), LazyIntegers(make))
            reader = _part_reader(matrix.expect(recipe.attribute), value)
            value.const_value = ir.LazyTensor(reader, value.dtype, ir.Shape(shape(value)), name=value.name)
        else:
            value.const_value = _Values(weight, source.tensor, value)
    return read


def as_stored(
    weight: Weight, source: Source, aliases: Mapping[str, Sequence[str]], wanted: tuple[int, ...]
) -> Weight:
    """The weight by the names that the source has for its parameters.

    Raises:
        CheckpointError: it lacks one, or they do not make what has the shape `wanted`.
    """
    weight = replace(weight, names=_stored_names(weight, source, aliases))
    _check_shape(weight, source, wanted)
    return weight


def _stored_names(weight: Weight, source: Source, aliases: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(
        next((n for n in (name, *aliases.get(name, ())) if n in source), name) for name in weight.names
    )


def _check_shape(weight: Weight, source: Source, wanted: tuple[int, ...]) -> None:
    found = weight.shape([source.shape(name) for name in weight.names])
    if found != wanted:
        raise CheckpointError(
            f"{' + '.join(weight.names)} has shape {list(found)} in the checkpoint, and {list(wanted)} by its configuration; "
            "its weights and its config.json are not of the same model"
        )


class _Values(ir.LazyTensor):
    """The values of a weight, which are written piece by piece."""

    def __init__(self, weight: Weight, read: Read, value: ir.Value) -> None:
        assert value.dtype is not None
        self._pieces = partial(weight.pieces, read, TORCH_DTYPES[value.dtype])
        whole = partial(weight.read, read, TORCH_DTYPES[value.dtype])
        super().__init__(lambda: _in_ir(whole()), value.dtype, ir.Shape(shape(value)), name=value.name)

    def tofile(self, file: Any) -> None:
        """Write them to a file that is open for it."""
        for piece in self._pieces():
            file.write(piece.view(torch.uint8).numpy())


def _in_ir(values: torch.Tensor) -> ir.TensorProtocol:
    if values.dtype is torch.bfloat16:
        return ir.Tensor(values.view(torch.uint16).numpy(), dtype=ir.DataType.BFLOAT16)
    return ir.Tensor(values.numpy())


def _in_integers(
    weight: Weight, source: Source, part: Part, hessians: Mapping[str, torch.Tensor]
) -> Blocks | Rows:
    if part.smoothing:
        dtype = source.tensor(weight.names[0]).dtype
        return by_rows(weight.read(source.tensor, dtype), part.smoothing)
    return _blocks(weight, source, part.quantization, hessians)


def _blocks(
    weight: Weight, source: Source, quantization: Quantization, hessians: Mapping[str, torch.Tensor]
) -> Blocks:
    """As the checkpoint has them, or quantized."""
    stored = [source.blocks(name, quantization) for name in weight.names]
    if all(stored):
        whole = concatenated([blocks for blocks in stored if blocks])
        return whole.take(weight.order) if weight.order else whole
    if quantization.algorithm == "gptq" and weight.names[0] in hessians:
        matrix = weight.read(source.tensor, torch.float32)
        return gptq(matrix, hessians[weight.names[0]], quantization)
    if quantization.algorithm == "gptq":  # the model multiplies with it in its own way
        quantization = replace(quantization, algorithm="rtn")
    # Rows are quantized each for itself: where a matrix is rows of the checkpoint, nothing has to be joined first.
    if weight == Weight(weight.names, order=weight.order):
        rows = (source.tensor(name).flatten(0, -2) for name in weight.names)
        blocks = concatenated([quantize(each, quantization) for each in rows])
        return blocks.take(weight.order) if weight.order else blocks
    dtype = torch.float32 if weight.offset else source.tensor(weight.names[0]).dtype
    return quantize(weight.read(source.tensor, dtype).flatten(0, -2), quantization)


def _part_reader(take: Callable[[], NDArray[Any]], value: ir.Value) -> Callable[[], ir.TensorProtocol]:
    def tensor() -> ir.TensorProtocol:
        assert value.dtype is not None
        return ir.Tensor(
            take().reshape(shape(value)).astype(value.dtype.numpy(), copy=False), dtype=value.dtype
        )

    return tensor
