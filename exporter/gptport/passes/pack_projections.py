"""Projections of the same input by the same module become one: query, key and value; gate and up.

    Linear(x, q), Linear(x, k), Linear(x, v)  →  Split(Linear(x, [q; k; v]))

One large matrix product reads its input once and keeps all cores busy where three small ones don't.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from . import constant, insert_before, replace_value

if TYPE_CHECKING:
    from . import Context


def pack_projections(graph: ir.Graph, context: Context) -> int:  # noqa: ARG001
    """Pack every group of two or more."""
    groups: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in graph:
        if node.domain == DOMAIN and node.op_type == "Linear":
            x, weight = node.inputs[0], node.inputs[1]
            assert weight is not None
            module = str(weight.name).rsplit(".", 2)[0]  # model.layers.0.self_attn of ….q_proj.weight
            groups[x, module, node.attributes.get_int("transposed"), len(node.inputs)].append(node)
    packed = [
        group
        for group in groups.values()
        if len(group) > 1 and not any(n.outputs[0].is_graph_output() for n in group)
    ]
    for group in packed:
        _pack(graph, group)
    return len(packed)


def _pack(graph: ir.Graph, group: list[ir.Node]) -> None:
    first = group[0]
    names = [str(node.inputs[1].name).split(".")[-2] for node in group]  # type: ignore[union-attr]
    module = str(first.inputs[1].name).rsplit(".", 2)[0]  # type: ignore[union-attr]
    axis = first.attributes.get_int("transposed")
    packed = []
    for i, kind in [(1, "weight"), (2, "bias")][: len(first.inputs) - 1]:
        parts = [part for node in group if (part := node.inputs[i]) is not None]
        packed.append(weights.concatenate(parts, axis if i == 1 else 0, f"{module}.{'+'.join(names)}.{kind}"))
    widths = [int(node.outputs[0].shape[-1]) for node in group]  # type: ignore[index, arg-type]
    linear = ir.node("Linear", [first.inputs[0], *packed], {"transposed": axis}, domain=DOMAIN)
    split = ir.node(
        "Split", [linear.outputs[0], constant(graph, widths)], {"axis": -1}, num_outputs=len(group)
    )
    like = first.outputs[0]
    linear.outputs[0].type = like.type
    linear.outputs[0].shape = ir.Shape([*like.shape[:-1], sum(widths)])  # type: ignore[index]
    insert_before(first, [linear, split])
    for node, piece in zip(group, split.outputs, strict=True):
        piece.type, piece.shape = node.outputs[0].type, node.outputs[0].shape
        replace_value(node.outputs[0], piece)
