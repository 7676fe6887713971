"""From a checkpoint to the graph that is written: trace, unroll, lower, attach the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import passes, unroll, weights
from .dialects import onnxruntime as dialect
from .trace import decoder_layers, rotary_tables, trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    import torch

    from .checkpoint import Checkpoint
    from .precision import Precision

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


def build(
    checkpoint: Checkpoint,
    precision: Precision,
    max_length: int,
    hessians: Mapping[str, torch.Tensor] | None = None,
) -> Graph:
    """The graph of a checkpoint; `hessians` are for gptq.

    Raises:
        UnsupportedModel: the architecture cannot be exported exactly.
        CheckpointError: a tensor that the architecture has is not in the checkpoint.
    """
    spec, config = checkpoint.spec, checkpoint.config
    alike = unroll.alike(decoder_layers(config, spec))
    traced = trace(config, spec, min(TRACED_LAYERS, spec.layers) if alike else spec.layers, precision.dtype)
    try:
        model = unroll.unroll(traced, spec.layers)
    except unroll.LayersDiffer:
        traced = trace(config, spec, spec.layers, precision.dtype)
        model = unroll.unroll(traced, spec.layers)
    context = passes.Context(
        spec, max_length, lambda module: rotary_tables(config, module, max_length), precision.quantization
    )
    changes = passes.run(model, dialect.PASSES, context)
    weights.attach(model.graph, checkpoint, traced.aliases, hessians)
    _strip(model.graph)
    model.graph.name, model.producer_name = spec.model_type, "gptport"
    model.opset_imports.clear()
    model.opset_imports.update(dialect.OPSETS)
    return Graph(model, traced.layers, changes)


def _strip(graph: ir.Graph) -> None:
    """What lies inside of a graph needs no shapes and no scopes any more."""
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
