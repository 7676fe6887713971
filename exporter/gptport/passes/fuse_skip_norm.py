"""A residual addition and the norm behind it become one operator; a bias before the addition goes in too.

s = Add(x, Linear(y, w, b));  Norm(s)  →  Skip(Simplified)LayerNormalization(x, MatMul(y, w), gamma, beta, b) → norm, s
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from . import insert_before, is_op, producer, replace_value

if TYPE_CHECKING:
    from . import Context


def fuse_skip_norm(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Fuse each norm with the addition that feeds it."""
    changed = 0
    for norm in [node for node in graph if is_op(node, "Norm", DOMAIN)]:
        add = producer(norm.inputs[0])
        if add is not None and is_op(add, "Add") and _is_residual(add):
            _fuse(graph, add, norm)
            changed += 1
    return changed


def _is_residual(add: ir.Node) -> bool:
    a, b = add.inputs
    return a is not None and b is not None and a.shape is not None and a.shape == b.shape


def _fuse(graph: ir.Graph, add: ir.Node, norm: ir.Node) -> None:
    skip, branch = add.inputs
    if skip is not None and _linear_of(skip) is not None and _linear_of(branch) is None:
        skip, branch = branch, skip
    kind = norm.attributes.get_string("kind")
    assert norm.inputs[1] is not None
    gamma = weights.offset(norm.inputs[1], norm.attributes.get_float("offset"))
    beta = norm.inputs[2] if len(norm.inputs) > 2 else None
    bias = _take_bias(branch)
    name, parameters = (
        ("SkipSimplifiedLayerNormalization", [gamma, bias])
        if kind == "rms"
        else ("SkipLayerNormalization", [gamma, beta, bias])
    )
    while parameters[-1] is None:
        parameters.pop()
    epsilon = {"epsilon": norm.attributes.get_float("epsilon")}
    fused = ir.node(name, [skip, branch, *parameters], epsilon, domain="com.microsoft", num_outputs=4)
    for unused in fused.outputs[1:3]:
        unused.name = ""
    insert_before(add, [fused])  # not before the norm: others may use the sum earlier
    for old, new in ((norm.outputs[0], fused.outputs[0]), (add.outputs[0], fused.outputs[3])):
        replace_value(old, new)
    graph.remove([norm, add], safe=True)


def _linear_of(value: ir.Value | None) -> ir.Node | None:
    """The Linear that computes a value which nothing else uses."""
    node = producer(value)
    return (
        node
        if node is not None and is_op(node, "Linear", DOMAIN) and len(node.outputs[0].uses()) == 1
        else None
    )


def _take_bias(branch: ir.Value | None) -> ir.Value | None:
    linear = _linear_of(branch)
    if linear is None or len(linear.inputs) < 3:
        return None
    bias = linear.inputs[2]
    linear.resize_inputs(2)
    return bias
