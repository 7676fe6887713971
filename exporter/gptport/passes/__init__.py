"""Graph rewrites, one a file, run in the order of a dialect's tuple.

A pass is a function `(graph, context) -> int`: it changes the graph in place and returns how many places it changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from ..precision import Quantization
    from ..spec import ModelSpec

    Pass = Callable[[ir.Graph, "Context"], int]


@dataclass(frozen=True)
class Context:
    """What passes may ask for.

    Attributes:
        spec: the model.
        max_length: tokens a sequence may have.
        rotary: path of a rotary module → its cosines and sines, each float32 [max_length, head_dim / 2].
        quantization: how matrices are stored, if not as they are.
        adapters: whether the graph takes LoRA adapters.
        smoothing: matrix [N, K] → what its input features are multiplied by, () for one that is not to be multiplied by rows;
            None if none is.
    """

    spec: ModelSpec
    max_length: int
    rotary: Callable[[str], tuple[NDArray[np.float32], NDArray[np.float32]]]
    quantization: Quantization | None = None
    adapters: bool = False
    smoothing: Callable[[ir.Value], tuple[float, ...]] | None = None


def run(
    model: ir.Model,
    passes: Sequence[Pass],
    context: Context,
    watch: Callable[[str, int], None] = lambda *_: None,
) -> dict[str, int]:
    """Run the passes in order; the result says how many places each of them changed, and `watch` is told after each."""
    changed: dict[str, int] = {}
    for rewrite in passes:
        places = rewrite(model.graph, context)
        changed[rewrite.__name__] = changed.get(rewrite.__name__, 0) + places
        tidy(model)
        watch(rewrite.__name__, places)
    return changed


def tidy(model: ir.Model) -> None:
    """Remove what nothing uses and what does nothing; small constants become initializers, one for each value."""
    IdentityEliminationPass()(model)
    CommonSubexpressionEliminationPass()(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)


def is_op(node: ir.Node, op_type: str, domain: str = "") -> bool:
    """Whether a node is that operator."""
    return node.op_type == op_type and node.domain == domain


def producer(value: ir.Value | None) -> ir.Node | None:
    """The node that computes a value; None for an input, an initializer and nothing."""
    return None if value is None else value.producer()


def insert_before(node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Insert nodes before another, as of the same module."""
    assert node.graph is not None
    for each in new:
        each.metadata_props.update(node.metadata_props)
    node.graph.insert_before(node, new)


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let every use of `old`, as an output of the graph too, take `new`, which gets its type and, for an output, its name."""
    if new.producer() is not None:
        new.type, new.shape = new.type or old.type, new.shape or old.shape
        if old.is_graph_output():
            new.name, old.name = old.name, None
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def constant(
    graph: ir.Graph, values: object, dtype: ir.DataType = ir.DataType.INT64, *, name: str | None = None
) -> ir.Value:
    """An initializer with these values; the same name gives the same initializer."""
    array = np.asarray(values)
    name = (
        name
        or f"constant.{dtype.name.lower()}.{'x'.join(map(str, array.shape))}.{'_'.join(map(str, array.ravel()))}"
    )
    if name not in graph.initializers:
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
        )
    return graph.initializers[name]
