"""A GELU takes the bias of the projection before it.

Activation[gelu_tanh](Linear(x, w, b))  →  FastGelu(MatMul(x, w), b);  gelu  →  BiasGelu
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from ..operators import DOMAIN
from . import insert_before, is_op, producer, replace_value

if TYPE_CHECKING:
    from . import Context

_FUSED = {"gelu_tanh": "FastGelu", "gelu": "BiasGelu"}


def fuse_bias_activation(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Fuse each GELU whose input is a biased projection that nothing else uses."""
    changed = 0
    for node in [node for node in graph if is_op(node, "Activation", DOMAIN)]:
        operator = _FUSED.get(node.attributes.get_string("kind"))
        linear = producer(node.inputs[0])
        if not operator or linear is None or not is_op(linear, "Linear", DOMAIN) or len(linear.inputs) < 3:
            continue
        if len(linear.outputs[0].uses()) == 1:
            bias = linear.inputs[2]
            linear.resize_inputs(2)
            fused = ir.node(operator, [linear.outputs[0], bias], domain="com.microsoft")
            insert_before(node, [fused])
            replace_value(node.outputs[0], fused.outputs[0])
            graph.remove(node, safe=True)
            changed += 1
    return changed
