"""A rotation that attention does not take in becomes one `com.microsoft.RotaryEmbedding`: some models norm or scale after it.

    Rotary(x, table)  →  RotaryEmbedding(x, position_ids, cos, sin)

https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.RotaryEmbedding
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from ..operators import DOMAIN
from . import constant, insert_before, is_op, producer, replace_value

if TYPE_CHECKING:
    from . import Context


def rotate_apart(graph: ir.Graph, context: Context) -> int:
    """Lower every Rotary."""
    nodes = [node for node in graph if is_op(node, "Rotary", DOMAIN)]
    for node in nodes:
        x, table = node.inputs
        assert x is not None
        assert x.shape is not None
        maker = producer(table)
        assert maker is not None
        rotation = ir.node(
            "RotaryEmbedding",
            [x, maker.inputs[1], *rotary_caches(graph, node, context)],
            {
                "interleaved": node.attributes.get_int("interleaved", 0),
                "num_heads": int(x.shape[1]),  # type: ignore[arg-type]
                "rotary_embedding_dim": 2 * pairs(node),
            },
            domain="com.microsoft",
        )
        insert_before(node, [rotation])
        replace_value(node.outputs[0], rotation.outputs[0])
        graph.remove(node, safe=True)
    return len(nodes)


def rotary_caches(graph: ir.Graph, node: ir.Node, context: Context) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines of a Rotary, each [max_length, pairs], in the graph's dtype."""
    module, backwards = _module(node), node.attributes.get_int("backwards", 0)
    names = [f"{module}.{which}_cache" for which in ("cos", "backwards_sin" if backwards else "sin")]
    if any(name not in graph.initializers for name in names):
        dtype = node.outputs[0].dtype
        assert dtype is not None
        cos, sin = context.rotary(module)
        for name, values in zip(names, (cos, np.negative(sin) if backwards else sin), strict=True):
            if name not in graph.initializers:
                constant(graph, values, dtype, name=name)
    return graph.initializers[names[0]], graph.initializers[names[1]]


def pairs(node: ir.Node) -> int:
    """How many pairs of axes a Rotary rotates."""
    table = node.inputs[1]
    assert table is not None
    assert table.shape is not None
    return int(table.shape[-1]) // 2  # type: ignore[arg-type]


def _module(node: ir.Node) -> str:
    """The path of the module whose angles a Rotary takes."""
    maker = producer(node.inputs[1])
    assert maker is not None
    return maker.attributes.get_string("module")
