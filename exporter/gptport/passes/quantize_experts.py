"""Experts are stored in integers, where the precision asks for it.

    MoE(x, scores, gate and up, bias, down, bias)  →  QMoE(x, scores, packed, scales, bias, packed, scales, bias, …, zero points)

The operator wants the same block size for both matrices, and whole blocks: experts whose features have no such size stay as they
are. By its schema `weights_prepacked` 0 stands for rows of blocks, in every execution provider:
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.QMoE
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from . import insert_before, is_op, replace_value

if TYPE_CHECKING:
    from ..precision import Quantization
    from . import Context

_SMALLEST = 16


def quantize_experts(graph: ir.Graph, context: Context) -> int:
    """Quantize every MoE that can be."""
    if context.quantization is None:
        return 0
    nodes = [node for node in graph if is_op(node, "MoE", "com.microsoft")]
    return sum(_quantize(graph, node, context.quantization) for node in nodes)


def left(graph: ir.Graph, context: Context) -> str:
    """Which experts were to be quantized and could not be, and why; nothing if there are none."""
    nodes = [node for node in graph if is_op(node, "MoE", "com.microsoft") and context.quantization]
    odd = {width for node in nodes for width in _features(node) if width % _SMALLEST}
    return (
        f"the experts of {len(nodes)} layers: {' and '.join(map(str, sorted(odd)))} features are not a multiple of "
        f"{_SMALLEST}, the smallest block"
        if nodes
        else ""
    )


def _features(node: ir.Node) -> tuple[int, int]:
    """Of what the two matrices of a MoE are multiplied with."""
    first, second = node.inputs[2], node.inputs[4]
    assert first is not None
    assert second is not None
    return weights.shape(first)[2], weights.shape(second)[2]


def _quantize(graph: ir.Graph, node: ir.Node, wanted: Quantization) -> int:
    quantization = _fitting(_features(node), wanted)
    if quantization is None:
        return 0
    x, scores, first, first_bias, second, *second_bias = node.inputs
    assert first is not None
    assert second is not None
    packed, scales, zeros = weights.in_blocks(first, quantization)
    packed_down, scales_down, zeros_down = weights.in_blocks(second, quantization)
    last = second_bias or [None]
    zero_points = [] if zeros is None else [None, None, None, zeros, zeros_down]
    mixture = ir.node(
        "QMoE",
        [x, scores, packed, scales, first_bias, packed_down, scales_down, *last, *zero_points],
        {
            **{name: attribute.value for name, attribute in node.attributes.items()},
            "expert_weight_bits": quantization.bits,
            "block_size": quantization.block_size,
            "weights_prepacked": 0,
        },
        domain="com.microsoft",
    )
    insert_before(node, [mixture])
    replace_value(node.outputs[0], mixture.outputs[0])
    graph.remove(node, safe=True)
    return 1


def _fitting(widths: tuple[int, int], wanted: Quantization) -> Quantization | None:
    """As wanted, in blocks that both widths are multiples of; rounded to nearest where the operator or the calibration cannot."""
    algorithm = wanted.algorithm if wanted.algorithm == "k_quant" else "rtn"
    for size in (wanted.block_size, 128, 64, 32, _SMALLEST):
        if size <= wanted.block_size and not any(width % size for width in widths):
            return replace(wanted, block_size=size, algorithm=algorithm)
    return None
