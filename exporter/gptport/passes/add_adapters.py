"""Each projection gets a low-rank branch beside it, for LoRA adapters; its matrices are inputs that a caller may leave out.

    Linear(x, w)  →  Linear(x, w) + Where(rows, x · down, 0) · up

`down` [in, rank] and `up` [rank, out] have rank 0 in the file: nothing is added. A caller gives the matrices of one adapter, or
those of several side by side; `rows` [batch, 1, rank] then says which of them are meant for which row of the batch.
The head has no branch: adapters of the token embedding or of the head are rare, and a head is read as a whole for every token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from .. import weights
from ..operators import DOMAIN
from . import constant, insert_before, is_op

if TYPE_CHECKING:
    from . import Context

PREFIX = "lora."
DOWN, UP, ROWS = ".down", ".up", ".rows"
_RECIPE = "gptport.adapted"


def add_adapters(graph: ir.Graph, context: Context) -> int:
    """Give every product with a matrix but the head's a branch, if adapters are wanted."""
    if not context.adapters:
        return 0
    linears = [node for node in graph if is_op(node, "Linear", DOMAIN) and not is_head(node)]
    for node in linears:
        _add_branch(graph, node)
    return len(linears)


def is_head(linear: ir.Node) -> bool:
    """Whether it computes on [B, features]: only the head does, after the last position was taken."""
    x = linear.inputs[0]
    return x is not None and x.shape is not None and len(x.shape) == 2


def adapted(graph: ir.Graph) -> dict[str, weights.Weight]:
    """Name of a branch, without its ending → the weight that it stands beside; its `axis` is that of the outputs."""
    return {
        str(value.name).removesuffix(DOWN): value.meta[_RECIPE]
        for value in graph.inputs
        if _RECIPE in value.meta
    }


def _add_branch(graph: ir.Graph, linear: ir.Node) -> None:
    x, weight = linear.inputs[:2]
    assert x is not None
    assert weight is not None
    assert x.dtype is not None
    transposed = linear.attributes.get_int("transposed")
    features = weights.shape(weight)
    name = PREFIX + str(weight.name).removesuffix(".arranged").removesuffix(".weight")
    # Each branch has a rank of its own name: onnxruntime takes values whose dimensions have the same names to be of one size.
    rank = "rank_of_" + name
    down = _optional(graph, name + DOWN, np.zeros((features[1 - transposed], 0)), x.dtype, rank, axis=1)
    up = _optional(graph, name + UP, np.zeros((0, features[transposed])), x.dtype, rank, axis=0)
    rows = _optional(graph, name + ROWS, np.ones((1, 1, 1)), ir.DataType.BOOL, "columns_of_" + name, axis=2)
    rows.shape = ir.Shape(["rows_of_" + name, *rows.shape[1:]])  # type: ignore[index]
    recipe = weights.of(weight)
    down.meta[_RECIPE] = replace(recipe, axis=int(transposed != recipe.transposed))

    output = linear.outputs[0]
    product = ir.node("MatMul", [x, down])
    # Not a product with 0 and 1: what another row's adapter makes of a row may be infinite.
    own = ir.node("Where", [rows, product.outputs[0], constant(graph, 0, x.dtype, name=f"{PREFIX}zero")])
    branch = ir.node("MatMul", [own.outputs[0], up])
    added = ir.node("Add", [output, branch.outputs[0]])
    added.outputs[0].type, added.outputs[0].shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, added.outputs[0])
    added.replace_input_with(0, output)
    insert_before(linear, [product, own, branch])
    added.metadata_props.update(linear.metadata_props)
    graph.insert_after(linear, added)


def _optional(
    graph: ir.Graph, name: str, values: object, dtype: ir.DataType, dimension: str, *, axis: int
) -> ir.Value:
    """An initializer that is an input too, and may have another size along `axis`."""
    value = constant(graph, values, dtype, name=name)
    shape: list[int | str] = [*np.shape(values)]  # type: ignore[arg-type]
    shape[axis] = dimension
    value.shape = ir.Shape(shape)
    if value not in graph.inputs:
        graph.inputs.append(value)
    return value
