"""What an ONNX file says without being run: its nodes, and the weights that a decode step reads."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from pathlib import Path

_LOOKUPS = {
    "Gather": 1,
    "GatherBlockQuantized": 1,
    "GroupQueryAttention": 9,
}  # inputs of which few rows are read, if any
_BITS: dict[int, int] = {  # of an element
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.BFLOAT16: 16,
    onnx.TensorProto.INT64: 64,
    onnx.TensorProto.INT32: 32,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
    onnx.TensorProto.BOOL: 8,
}


def operators(path: Path) -> Counter[str]:
    """How many nodes of each operator the graph has."""
    return Counter(node.op_type for node in _graph(path).node)


def per_layer(counts: Counter[str], layers: int) -> int:
    """Nodes that each of `layers` layers has: an operator counts as often as it occurs once for all of them."""
    return sum(count // layers for count in counts.values())


def decoded_bytes(path: Path) -> int:
    """Bytes of weights that one decode step reads: all of them, less tables that are only looked up in."""
    return sum(size for weights in weights_read(path).values() for size in weights.values())


def weights_read(path: Path) -> dict[str, dict[str, int]]:
    """Node by node, the weights that a decode step reads whole, with their bytes."""
    graph = _graph(path)
    sizes = {tensor.name: prod(tensor.dims) * _BITS[tensor.data_type] // 8 for tensor in graph.initializer}
    return {
        node.name: {
            name: sizes[name] for name in node.input[_LOOKUPS.get(node.op_type, 0) :] if name in sizes
        }
        for node in graph.node
    }


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(str(path), load_external_data=False).graph
