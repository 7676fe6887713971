"""An ONNX graph that another exporter wrote, recognised by the names and shapes of its inputs and outputs, and by its attention.

Two kinds are known. With a *fixed* cache every layer is a GroupQueryAttention, whose past and present may be one buffer of fixed
size; onnxruntime-genai's builder writes such graphs. With a *growing* cache present is past with new keys and values behind it;
optimum writes those.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from .errors import CheckpointError, UnsupportedModel, first_line
from .passes import is_op

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .spec import ModelSpec

_CACHE = re.compile(r"(?:past_key_values|present)\.(\d+)\.(key|value)")
_KINDS = ("key", "value")
_OLDEST_OPSET = 13  # from it on, what is inserted has its axes as inputs

# name → its dtype and its number of dimensions
_KNOWN = {
    "input_ids": (ir.DataType.INT64, 2),
    "attention_mask": (ir.DataType.INT64, 2),
    "position_ids": (ir.DataType.INT64, 2),
    "num_logits_to_keep": (ir.DataType.INT64, 0),  # of the last positions; 0 for all
    "use_cache_branch": (ir.DataType.BOOL, 1),  # of two graphs in one, that with past
}
_LOGITS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class CachePair:
    """A layer's keys or values: the input and the output, both [batch, kv_heads, length, head_dim]."""

    past: ir.Value
    present: ir.Value


@dataclass(frozen=True)
class ForeignGraph:
    """A graph that was recognised.

    Attributes:
        path: its file.
        model: as it was read; weights in other files are not loaded.
        cache: key and value of layer 0, of layer 1, and so on.
        grows: whether the cache grows, instead of staying in a buffer of fixed size.
    """

    path: Path
    model: ir.Model
    cache: tuple[CachePair, ...]
    grows: bool

    @property
    def inputs(self) -> dict[str, ir.Value]:
        """Those that are not of the cache."""
        return {str(each.name): each for each in self.model.graph.inputs if each.name in _KNOWN}

    @property
    def weights_files(self) -> list[Path]:
        """The files beside it that hold its weights.

        Raises:
            CheckpointError: one is missing, or lies elsewhere.
        """
        return _weights_files(self.path, self.model)


def load(path: Path) -> ir.Model:
    """A graph, its weights left where they are.

    Raises:
        CheckpointError: the file is not one.
    """
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's errors and onnx-ir's have no common base
        raise CheckpointError(f"{path} cannot be read as ONNX: {first_line(error)}") from error


def input_names(path: Path) -> list[str]:
    """The inputs of the graph in a file; initializers are none.

    Raises:
        CheckpointError: the file is not one.
    """
    return [str(value.name) for value in load(path).graph.inputs if not value.is_initializer()]


def has_cache(inputs: Sequence[str]) -> bool:
    """Whether a graph with these inputs takes keys and values."""
    return any(_CACHE.fullmatch(name) for name in inputs)


def recognised(path: Path, model: ir.Model) -> ForeignGraph:
    """What a graph is.

    Raises:
        UnsupportedModel: none that is known; the message names the tensor and what was expected.
    """
    opset = model.opset_imports.get("", 0)
    if opset < _OLDEST_OPSET:
        raise UnsupportedModel(f"{path} has opset {opset}; expected {_OLDEST_OPSET} or later")
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    grows = not _attention(model)
    for name in ("input_ids",) if grows else ("input_ids", "attention_mask"):
        if name not in inputs:
            raise UnsupportedModel(f"{path} has no input {name}; expected one beside {', '.join(inputs)}")
    for name, value in inputs.items():
        if name in _KNOWN and (grows or name != "use_cache_branch"):
            _expect(path, value, *_KNOWN[name])
        elif not _CACHE.fullmatch(name) or name.startswith("present"):
            expected = f"{', '.join(list(_KNOWN)[: 5 if grows else 4])} and past_key_values.N.key and .value"
            raise UnsupportedModel(f"{path} has an input {name}; expected no others than {expected}")
    _expect_logits(path, outputs.pop("logits", None), inputs["input_ids"])
    cache = _cache(path, inputs, outputs, grows=grows)
    if not grows:
        _check_attention(path, model)
    return ForeignGraph(path, model, cache, grows)


def check(foreign: ForeignGraph, spec: ModelSpec) -> None:
    """Whether the graph is that of the configuration.

    Raises:
        UnsupportedModel: it is not; the message names the tensor.
    """
    logits = next(value for value in foreign.model.graph.outputs if value.name == "logits")
    layers = len(foreign.cache) // 2
    if layers != spec.layers:
        raise UnsupportedModel(
            f"{foreign.path} has a cache of {layers} layers; expected {spec.layers}, by its configuration"
        )
    past = foreign.cache[0].past
    for value, axis, wanted in (
        (past, 1, spec.kv_heads),
        (past, 3, spec.head_dim),
        (logits, 2, spec.vocab_size),
    ):
        found = _dims(value)[axis]
        if isinstance(found, int) and found != wanted:
            raise UnsupportedModel(
                f"{foreign.path}: {value.name} is {_shape(value)}; expected {wanted} instead of {found}, by its configuration"
            )


def _weights_files(path: Path, model: ir.Model) -> list[Path]:
    """See `ForeignGraph`."""
    locations = {
        str(value.const_value.location): None
        for graph in (model.graph, *model.graph.subgraphs())
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    for location in locations:
        if "/" in location or "\\" in location or location in (".", ".."):
            raise CheckpointError(
                f"{path} has weights in {location}; expected them in a file of the same folder"
            )
        if not (path.parent / location).is_file():
            raise CheckpointError(f"{path} has weights in {location}, which is not in {path.parent}")
    return [path.parent / location for location in locations]


def _cache(
    path: Path, inputs: dict[str, ir.Value], outputs: dict[str, ir.Value], *, grows: bool
) -> tuple[CachePair, ...]:
    """The cache's tensors by layer; every layer has keys and values, and all are alike."""
    pasts = {name: value for name, value in inputs.items() if name not in _KNOWN}
    names = [f"{layer}.{kind}" for layer in range((len(pasts) + 1) // 2) for kind in _KINDS]
    pairs = []
    for name in names:
        for side, values in (("past_key_values", pasts), ("present", outputs)):
            if f"{side}.{name}" not in values:
                raise UnsupportedModel(
                    f"{path} has no {side}.{name}; expected keys and values of every layer"
                )
        pairs.append(CachePair(pasts[f"past_key_values.{name}"], outputs.pop(f"present.{name}")))
    for name in outputs:
        raise UnsupportedModel(
            f"{path} has an output {name}; expected only logits and present.N.key and .value"
        )
    first = pairs[0].past
    for pair in pairs:
        for value in (pair.past, pair.present):
            _expect(path, value, first.dtype, 4)
            fixed = _dims(value)[1::2]
            known = [isinstance(dim, int) for dim in fixed]
            if fixed != _dims(first)[1::2] or not known[0] or (grows and not known[1]):
                raise UnsupportedModel(
                    f"{path}: {value.name} is {_shape(value)}; expected [batch, kv_heads, length, head_dim], as {first.name} "
                    f"{_shape(first)}, the same in every layer"
                )
            if isinstance(_dims(value)[2], int):
                raise UnsupportedModel(
                    f"{path}: {value.name} is {_shape(value)}; expected a length that may vary"
                )
    return tuple(pairs)


def _attention(model: ir.Model) -> list[ir.Node]:
    return [node for node in nodes(model) if is_op(node, "GroupQueryAttention", "com.microsoft")]


def _check_attention(path: Path, model: ir.Model) -> None:
    """Each layer's cache is that of a GroupQueryAttention."""
    names = {
        tuple(value.name if value else None for value in (*node.inputs[3:5], *node.outputs[1:3]))
        for node in _attention(model)
    }
    for layer in range(sum(1 for each in model.graph.inputs if _CACHE.fullmatch(str(each.name))) // 2):
        wanted = tuple(f"{side}.{layer}.{kind}" for side in ("past_key_values", "present") for kind in _KINDS)
        if wanted not in names:
            raise UnsupportedModel(
                f"{path}: {wanted[0]} is not the past of a GroupQueryAttention that gives {wanted[2]}; "
                "expected every layer to be so, or none"
            )


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes, those of branches too."""
    return iter(model.graph.all_nodes())


def _expect(path: Path, value: ir.Value, dtype: ir.DataType | None, rank: int) -> None:
    if value.dtype != dtype or len(_dims(value)) != rank:
        raise UnsupportedModel(
            f"{path}: {value.name} is {value.dtype} {_shape(value)}; expected {dtype} with {rank} dimensions"
        )


def _expect_logits(path: Path, logits: ir.Value | None, input_ids: ir.Value) -> None:
    if logits is None:
        raise UnsupportedModel(f"{path} has no output logits; expected logits [batch, sequence, vocab]")
    if logits.dtype not in _LOGITS:
        raise UnsupportedModel(f"{path}: logits is {logits.dtype}; expected FLOAT, FLOAT16 or BFLOAT16")
    if isinstance(_dims(input_ids)[1], int):
        raise UnsupportedModel(
            f"{path}: input_ids is {_shape(input_ids)}; expected a number of tokens that may vary"
        )
    dims = _dims(logits)
    if len(dims) != 3 or isinstance(dims[1], int):
        raise UnsupportedModel(
            f"{path}: logits is {_shape(logits)}; expected [batch, sequence, vocab], a row for every token of input_ids "
            f"{_shape(input_ids)}"
        )


def _dims(value: ir.Value) -> Sequence[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]


def _shape(value: ir.Value) -> str:
    return f"[{', '.join(map(str, _dims(value)))}]"
