"""Experts become one `com.microsoft.MoE`, which computes only those that were chosen.

    Experts(x, chosen, weights, …)  →  MoE(x, log(weights) at the chosen, lowest elsewhere, …) · sum(weights)

The operator chooses and weighs by a softmax of its own. That of the logarithms of the weights is the weights again, divided by
their sum, whatever the model's router does. Its kernel for the CPU wants gate and up in turn:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MoE
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from . import constant, insert_before, is_op, replace_value

if TYPE_CHECKING:
    from . import Context


def fuse_experts(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Lower every Experts."""
    nodes = [node for node in graph if is_op(node, "Experts", DOMAIN)]
    for node in nodes:
        _fuse(graph, node)
    return len(nodes)


def _fuse(graph: ir.Graph, node: ir.Node) -> None:
    _set_apart(node)
    x, chosen, shares, gate_up, down, *biases = node.inputs
    assert shares is not None
    assert shares.shape is not None
    assert gate_up is not None
    assert down is not None
    transposed = bool(node.attributes.get_int("transposed"))
    apart = not node.attributes.get_int("interleaved")
    first = weights.of_experts(gate_up, transposed=transposed, interleave=apart)
    second = weights.of_experts(down, transposed=transposed)
    first_bias, second_bias = biases or (None, None)
    if first_bias is not None:
        first_bias = weights.of_experts(first_bias, interleave=apart)
    scores = _scores(graph, node, chosen, shares, weights.shape(first)[0])
    mixture = ir.node(
        "MoE",
        [x, scores, first, first_bias, second, second_bias],
        {
            "k": int(shares.shape[1]),  # type: ignore[arg-type]
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "normalize_routing_weights": 1,
            "activation_alpha": node.attributes.get_float("alpha"),
            "activation_beta": node.attributes.get_float("beta"),
            **({"swiglu_limit": limit} if (limit := node.attributes.get_float("limit")) else {}),
        },
        domain="com.microsoft",
    )
    total = ir.node("ReduceSum", [shares, constant(graph, [-1])], {"keepdims": 1})
    weighted = ir.node("Mul", [mixture.outputs[0], total.outputs[0]])
    insert_before(node, [mixture, total, weighted])
    replace_value(node.outputs[0], weighted.outputs[0])
    graph.remove(node, safe=True)


def _set_apart(node: ir.Node) -> None:
    """Give gate, up and down, whose experts lie below each other, the axes that the others have: [E,2·I,H] and [E,H,I]."""
    experts = node.attributes.get_int("below", 0)
    if experts:
        gate, up, down = (each for each in node.inputs[3:] if each is not None)
        node.replace_input_with(3, weights.apart([gate, up], experts))
        node.replace_input_with(4, weights.of_experts(weights.apart([down], experts), transposed=True))
        node.resize_inputs(5)


def _scores(
    graph: ir.Graph, node: ir.Node, chosen: ir.Value | None, shares: ir.Value, experts: int
) -> ir.Value:
    """[T,E]: the logarithms of the weights, and the lowest number for the experts that were not chosen."""
    dtype = shares.dtype
    assert dtype is not None
    lowest = constant(graph, [np.finfo(np.float16).min if dtype == ir.DataType.FLOAT16 else -1e30], dtype)
    tokens = ir.node("Shape", [shares], {"start": 0, "end": 1})
    shape = ir.node("Concat", [tokens.outputs[0], constant(graph, [experts])], {"axis": 0})
    empty = ir.node("Expand", [lowest, shape.outputs[0]])
    logarithms = ir.node("Log", [shares])
    scores = ir.node("ScatterElements", [empty.outputs[0], chosen, logarithms.outputs[0]], {"axis": 1})
    insert_before(node, [tokens, shape, empty, logarithms, scores])
    return scores.outputs[0]
