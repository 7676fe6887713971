"""The onnxruntime dialect: fused contrib operators, on CPU and CUDA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from ..errors import UnsupportedModel
from ..operators import DOMAIN
from ..passes import constant, insert_before, replace_value
from ..passes.add_adapters import add_adapters
from ..passes.arrange_projections import arrange_projections
from ..passes.cancel_views import cancel_views
from ..passes.fold_partial_rotary import fold_partial_rotary
from ..passes.fuse_attention import fuse_attention
from ..passes.fuse_bias_activation import fuse_bias_activation
from ..passes.fuse_experts import fuse_experts
from ..passes.fuse_skip_norm import fuse_skip_norm
from ..passes.multiply_by_rows import multiply_by_rows
from ..passes.pack_projections import pack_projections
from ..passes.quantize_experts import quantize_experts
from ..passes.quantize_matrices import quantize_matrices
from ..passes.rotate_apart import rotate_apart
from ..passes.unflatten import unflatten

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..passes import Context

NAME = "onnxruntime"
LOGITS_OFFSETS = "logits_offsets"
OPSETS = {"": 21, "com.microsoft": 1}


def lower(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """What no fusion took becomes the plain operator.

    Raises:
        UnsupportedModel: there is no such operator.
    """
    nodes = [node for node in graph if node.domain == DOMAIN and node.op_type != "RotaryTable"]
    for node in nodes:
        if node.op_type not in _LOWERINGS:
            raise UnsupportedModel(
                f"{node.op_type} outside of attention has no operator in the {NAME} dialect"
            )
        replace_value(node.outputs[0], _LOWERINGS[node.op_type](graph, node))
        graph.remove(node, safe=True)
    return len(nodes)


def _linear(_: ir.Graph, node: ir.Node) -> ir.Value:
    """A matrix product; on [B, features] a Gemm, which takes the weight as it is, shared with a tied embedding."""
    x, weight, *bias = node.inputs
    assert x is not None
    assert weight is not None
    transposed = node.attributes.get_int("transposed")
    if x.shape is not None and len(x.shape) == 2:
        return _insert(node, "Gemm", [x, weight, *bias], {"transB": 1 - transposed})
    matrix = weight if transposed else weights.transpose(weight)
    product = _insert(node, "MatMul", [x, matrix])
    return _insert(node, "Add", [product, *bias]) if bias else product


def _norm(_: ir.Graph, node: ir.Node) -> ir.Value:
    name = {"rms": "SimplifiedLayerNormalization", "layer": "LayerNormalization"}
    x, weight, *bias = node.inputs
    assert weight is not None
    inputs = [x, weights.offset(weight, node.attributes.get_float("offset")), *bias]
    attributes: dict[str, int | float | str] = {"epsilon": node.attributes.get_float("epsilon"), "axis": -1}
    return _insert(node, name[node.attributes.get_string("kind")], inputs, attributes)


def _activation(_: ir.Graph, node: ir.Node) -> ir.Value:
    (x,) = node.inputs
    kind = node.attributes.get_string("kind")
    if kind == "relu":
        return _insert(node, "Relu", [x])
    if kind in ("gelu", "gelu_tanh"):
        return _insert(node, "Gelu", [x], {"approximate": "tanh" if kind == "gelu_tanh" else "none"})
    alpha = {"silu": 1.0, "gelu_quick": 1.702}[kind]
    return _insert(node, "QuickGelu", [x], {"alpha": alpha}, "com.microsoft")


def _last_position(_: ir.Graph, node: ir.Node) -> ir.Value:
    x, position_ids, seqlens_k = node.inputs
    assert x is not None
    assert position_ids is not None
    assert seqlens_k is not None
    return last_position(node, x, position_ids, seqlens_k, int(node.outputs[0].shape[-1]))  # type: ignore[index, arg-type]


def last_position(
    before: ir.Node, x: ir.Value, position_ids: ir.Value, seqlens_k: ir.Value, width: int
) -> ir.Value:
    """x[b, seqlens_k[b] − position_ids[b, 0] − logits_offsets[i]] as row b · offsets + i, of x [B,S,width].

    The valid tokens of this call begin at the row's first position. The offsets are [0] unless a caller asks for more.
    """
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    first = _insert(before, "Gather", [position_ids, constant(graph, [0])], {"axis": 1})
    last = _insert(
        before,
        "Unsqueeze",
        [_insert(before, "Cast", [seqlens_k], {"to": ir.DataType.INT64}), constant(graph, [1])],
    )
    asked = _insert(before, "Sub", [_insert(before, "Sub", [last, first]), _logits_offsets(graph)])
    inside = _insert(before, "Max", [asked, constant(graph, [0])])
    places = _insert(before, "Unsqueeze", [inside, constant(graph, [2])])
    found = _insert(before, "GatherND", [x, places], {"batch_dims": 1})
    return _insert(before, "Reshape", [found, constant(graph, [-1, width])])


def _logits_offsets(graph: ir.Graph) -> ir.Value:
    """An initializer that is an input too: whoever calls the graph may leave it out."""
    value = constant(graph, [0], name=LOGITS_OFFSETS)
    value.shape = ir.Shape(["offsets"])
    if value not in graph.inputs:
        graph.inputs.append(value)
    return value


def _insert(
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    attributes: dict[str, int | float | str] | None = None,
    domain: str = "",
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes, domain=domain)
    insert_before(before, [node])
    return node.outputs[0]


_LOWERINGS: dict[str, Callable[[ir.Graph, ir.Node], ir.Value]] = {
    "Linear": _linear,
    "Norm": _norm,
    "Activation": _activation,
    "LastPosition": _last_position,
}

PASSES = (
    unflatten,
    cancel_views,
    fold_partial_rotary,
    cancel_views,
    pack_projections,
    fuse_attention,
    rotate_apart,
    arrange_projections,
    fuse_experts,
    cancel_views,
    fuse_skip_norm,
    fuse_bias_activation,
    add_adapters,
    multiply_by_rows,
    quantize_matrices,
    quantize_experts,
    lower,
)
