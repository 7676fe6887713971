"""From a checkpoint to the graph that is written: trace, unroll, lower, attach the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from . import passes, unroll, weights
from .dialects import onnxruntime as dialect
from .trace import rotary_tables, trace

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .precision import Precision

IR_VERSION = 10
"""onnxruntime has read it since 1.20."""

TRACED_LAYERS = 2


@dataclass(frozen=True)
class Graph:
    """A graph ready to be written.

    Attributes:
        model: the graph; the values of its initializers are read from the checkpoint when they are written.
        traced_layers: how many layers were traced, of those that it has.
        changes: pass → how many places it changed.
    """

    model: ir.Model
    traced_layers: int
    changes: dict[str, int]


def build(checkpoint: Checkpoint, precision: Precision, max_length: int) -> Graph:
    """The graph of a checkpoint.

    Raises:
        UnsupportedModel: the architecture cannot be exported exactly.
        CheckpointError: a tensor that the architecture has is not in the checkpoint.
    """
    spec, config = checkpoint.spec, checkpoint.config
    traced = trace(config, spec, min(TRACED_LAYERS, spec.layers), precision.dtype)
    try:
        model = unroll.unroll(traced, spec.layers)
    except unroll.LayersDiffer:
        traced = trace(config, spec, spec.layers, precision.dtype)
        model = unroll.unroll(traced, spec.layers)
    context = passes.Context(spec, max_length, lambda module: rotary_tables(config, module, max_length))
    changes = passes.run(model, dialect.PASSES, context)
    weights.attach(model.graph, checkpoint.tensor, checkpoint.__contains__, traced.tied)
    _name_dimensions(model.graph)
    model.ir_version = IR_VERSION
    model.graph.name, model.producer_name = spec.model_type, "gptport"
    model.opset_imports.clear()
    model.opset_imports.update(dialect.OPSETS)
    return Graph(model, traced.layers, changes)


def _name_dimensions(graph: ir.Graph) -> None:
    """`batch`, `sequence` and `max_length` where torch numbered its symbols; what lies inside needs no shapes any more."""
    ids, cache = graph.inputs[0].shape, graph.inputs[3].shape
    assert ids is not None
    assert cache is not None
    names = {str(ids[0]): "batch", str(ids[1]): "sequence", str(cache[2]): "max_length"}
    for value in (*graph.inputs, *graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([dim if isinstance(dim, int) else names[str(dim)] for dim in value.shape])
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
