"""Projections, the head and the token embedding are stored in integers, where the precision asks for it.

    Linear(x, w, b)      →  MatMulNBits(x, packed, scales, zero points, b)
    Gather(w, input_ids) →  Reshape(GatherBlockQuantized(packed, input_ids, scales, zero points))

The token embedding keeps 8 bits, and so does the head unless other bits are asked for: a tied embedding is stored once then.
Their blocks are the largest, up to those of the precision or of `EIGHT_BIT_BLOCK`, of which the features are a multiple.
The router of a mixture of experts stays as it is: it is small, and a rounding error in it computes another expert.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from ..precision import EIGHT_BIT_BLOCK
from . import constant, insert_before, is_op, producer, replace_value
from .add_adapters import is_head

if TYPE_CHECKING:
    from ..precision import Quantization
    from . import Context

# Activations are rounded to 8 bits too, block by block, inside of the kernel: with whole numbers it is several times as fast.
_INT8 = 4


def quantize_matrices(graph: ir.Graph, context: Context) -> int:
    """Quantize every matrix that is multiplied with, and the token embedding."""
    quantization = context.quantization
    if quantization is None:
        return 0
    if quantization.algorithm == "smoothquant":  # of which this is what could not be computed by rows
        quantization = replace(quantization, algorithm="rtn")
    without = routers(graph)
    linears = [node for node in graph if is_op(node, "Linear", DOMAIN) and node not in without]
    for node in linears:
        in_eight_bits = is_head(node) and quantization.head_bits == 8
        _quantize_linear(graph, node, _in_eight_bits(node, quantization) if in_eight_bits else quantization)
    gathers = [node for node in graph if _is_embedding(graph, node, context)]
    return len(linears) + sum(_quantize_embedding(graph, node, quantization) for node in gathers)


def routers(graph: ir.Graph) -> set[ir.Node]:
    """The products that a MoE chooses its experts by: back from its scores, to the first product or the norm before it."""
    found: set[ir.Node] = set()
    seen: set[ir.Node] = set()
    mixtures = [node for node in graph if is_op(node, "MoE", "com.microsoft")]
    left = [producer(node.inputs[1]) for node in mixtures]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_op(node, "Linear", DOMAIN):
            found.add(node)
        elif node.op_type not in ("MatMul", "Gemm") and "Norm" not in node.op_type:
            left += [producer(value) for value in node.inputs]
    return found


def _in_eight_bits(node: ir.Node, quantization: Quantization) -> Quantization:
    """8 bits, in blocks of which the features of the embedding are a multiple."""
    weight = node.inputs[1]
    assert weight is not None
    features = weights.shape(weight)[1 - node.attributes.get_int("transposed")]
    return _fitting(features, quantization) or replace(
        quantization, bits=8, algorithm="rtn", block_size=EIGHT_BIT_BLOCK
    )


def _fitting(features: int, quantization: Quantization) -> Quantization | None:
    largest = quantization.block_size if quantization.bits == 8 else EIGHT_BIT_BLOCK
    for size in (largest, 128, 64, 32, 16):
        if size <= largest and features % size == 0:
            return replace(quantization, bits=8, algorithm="rtn", block_size=size)
    return None


def _quantize_linear(graph: ir.Graph, node: ir.Node, quantization: Quantization) -> None:
    x, weight, *bias = node.inputs
    assert weight is not None
    matrix = weights.transpose(weight) if node.attributes.get_int("transposed") else weight
    n, k = weights.shape(matrix)
    packed, scales, zero_points = weights.in_blocks(matrix, quantization)
    attributes = {
        "K": k,
        "N": n,
        "bits": quantization.bits,
        "block_size": quantization.block_size,
        "accuracy_level": _INT8,
    }
    inputs = [x, packed, scales, zero_points, *([None, *bias] if bias else [])]
    while inputs[-1] is None:
        inputs.pop()
    product = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft")
    insert_before(node, [product])
    replace_value(node.outputs[0], product.outputs[0])
    graph.remove(node, safe=True)


def _is_embedding(graph: ir.Graph, node: ir.Node, context: Context) -> bool:
    if not is_op(node, "Gather") or node.attributes.get_int("axis", 0) != 0:
        return False
    table, ids = node.inputs
    assert table is not None
    return (
        ids is graph.inputs[0]
        and weights.is_parameter(table)
        and weights.shape(table)[0] == context.spec.vocab_size
    )


def _quantize_embedding(graph: ir.Graph, node: ir.Node, quantization: Quantization) -> int:
    table, ids = node.inputs
    assert table is not None
    features = weights.shape(table)[1]
    fitting = _fitting(features, quantization)
    if fitting is None:
        return 0
    packed, scales, zero_points = weights.in_blocks(table, fitting, for_rows=True)
    attributes = {"bits": 8, "block_size": fitting.block_size, "gather_axis": 0, "quantize_axis": 2}
    inputs = [packed, ids, scales, *([] if zero_points is None else [zero_points])]
    rows = ir.node("GatherBlockQuantized", inputs, attributes, domain="com.microsoft")
    flat = ir.node("Reshape", [rows.outputs[0], constant(graph, [0, 0, features])])
    insert_before(node, [rows, flat])
    replace_value(node.outputs[0], flat.outputs[0])
    graph.remove(node, safe=True)
    return 1
