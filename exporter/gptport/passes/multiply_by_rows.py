"""Products with integers of one scale for each row, of the inputs as of the matrix: for int8 by smoothquant.

    Linear(x, w, b)  →  Mul(MatMulIntegerToFloat(q, packed, 1/127, scales, 128), m) + b
                        of m = max |x · factors| of each row, q = QuantizeLinear(x · factors / m, 1/127, 128)

The largest value of a row of inputs is found when the graph runs: what a row gives does not depend on what else is in the
batch. Products that would lose too much stay as they are, for `quantize_matrices`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from ..row_scales import TINY, TOP
from ..smoothquant import MAX_ERROR
from . import constant, insert_before, is_op, replace_value
from .quantize_matrices import routers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from . import Context

OPERATOR = "MatMulIntegerToFloat"
_MIDDLE = 128  # the integer of 0 among those of the inputs, 1 to 255
_NAMED = 5


def multiply_by_rows(graph: ir.Graph, context: Context) -> int:
    """Compute the products by rows that lose little by it."""
    quantization = context.quantization
    if quantization is None or context.smoothing is None:
        return 0
    without = routers(graph)
    places = 0
    for node in [node for node in graph if is_op(node, "Linear", DOMAIN) and node not in without]:
        weight = node.inputs[1]
        assert weight is not None
        matrix = weights.transpose(weight) if node.attributes.get_int("transposed") else weight
        if smoothing := context.smoothing(matrix):
            _rewrite(graph, node, weights.by_rows(matrix, quantization, smoothing))
            places += 1
    return places


def left(graph: ir.Graph, context: Context) -> str:
    """Which products are in blocks although they were to be computed by rows; "" if none is."""
    if context.smoothing is None:
        return ""
    names = [
        "+".join(weights.names(packed))
        for node in graph
        if is_op(node, "MatMulNBits", "com.microsoft") and (packed := node.inputs[1])
    ]
    if not names:
        return ""
    others = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return (
        f"{', '.join(names[:_NAMED])}{others}, which by rows would lose more than {MAX_ERROR:.0%} of what they give, "
        "or whose inputs are unknown"
    )


def _rewrite(graph: ir.Graph, node: ir.Node, matrix: tuple[ir.Value, ir.Value, ir.Value]) -> None:
    x, _, *bias = node.inputs
    packed, scales, factors = matrix
    middle, one = constant(graph, _MIDDLE, ir.DataType.UINT8), constant(graph, 1 / TOP, ir.DataType.FLOAT)
    tiny = constant(graph, TINY, ir.DataType.FLOAT)

    def insert(op_type: str, inputs: Sequence[ir.Value | None], domain: str = "") -> ir.Value:
        attributes = {"keepdims": 1} if op_type == "ReduceMax" else {}
        new = ir.node(op_type, inputs, attributes, domain=domain)
        insert_before(node, [new])
        return new.outputs[0]

    smooth = insert("Mul", [x, factors])
    largest = insert("Max", [insert("ReduceMax", [insert("Abs", [smooth]), constant(graph, [-1])]), tiny])
    integers = insert("QuantizeLinear", [insert("Div", [smooth, largest]), one, middle])
    product = insert(OPERATOR, [integers, packed, one, scales, middle], "com.microsoft")
    result = insert("Mul", [product, largest])
    if bias:
        result = insert("Add", [result, *bias])
    replace_value(node.outputs[0], result)
    graph.remove(node, safe=True)
