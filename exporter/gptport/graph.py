"""From a checkpoint to the graph that is written: trace, unroll, lower, attach the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import passes, residuals, unroll, weight_parts, weight_values
from .calibration import Calibration
from .dialects import onnxruntime as dialect
from .layer_graph import LayerGraph, layer_graph
from .passes import multiply_by_rows, quantize_experts
from .smoothquant import SmoothQuant
from .trace import decoder_layers, rotary_tables, trace
from .unread import unread

if TYPE_CHECKING:
    import onnx_ir as ir

    from .checkpoint import Checkpoint
    from .precision import Precision
    from .trace import Trace

TRACED_LAYERS = 2


@dataclass(frozen=True)
class Rewrite:
    """What one pass did.

    Attributes:
        name: of the pass.
        places: how many it changed, in the whole graph.
        operators: the nodes of the layer that is watched after it, (operator, how many).
    """

    name: str
    places: int
    operators: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Lowering:
    """How a graph came to be, without the graph.

    Attributes:
        traced_layers: how many layers were traced, of those that it has.
        rewrites: the passes, in order.
        before: a layer as it was traced.
        after: the same layer as it is written.
        sizes: of the parts.
        not_quantized: what was to be and could not be, and why.
        in_blocks: what was to be computed by rows and is not, and why.
    """

    traced_layers: int
    rewrites: tuple[Rewrite, ...]
    before: LayerGraph
    after: LayerGraph
    sizes: tuple[weight_parts.PartSize, ...]
    not_quantized: str = ""
    in_blocks: str = ""

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(each.parameters for each in self.sizes)

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(each.bytes for each in self.sizes)

    @property
    def bits_per_parameter(self) -> float:
        """Of what is written; tables and constants count too."""
        return 8 * self.bytes / self.parameters

    @property
    def changes(self) -> dict[str, int]:
        """Pass → how many places it changed."""
        counted: dict[str, int] = {}
        for each in self.rewrites:
            counted[each.name] = counted.get(each.name, 0) + each.places
        return counted


@dataclass(frozen=True)
class Graph:
    """A graph ready to be written.

    Attributes:
        model: the graph; the values of its initializers are read from the checkpoint when they are written.
        layers_path: path of the list of decoder layers in the model in torch.
        hidden_states: names of what each layer hands on; none where that is more than one value.
        lowering: how it came to be.
        unread: what the checkpoint has beside it, in words.
    """

    model: ir.Model
    layers_path: str
    hidden_states: tuple[str, ...]
    lowering: Lowering
    unread: str


def build(
    checkpoint: Checkpoint,
    precision: Precision,
    max_length: int,
    calibrated: Calibration | None = None,
    *,
    adapters: bool = False,
) -> Graph:
    """The graph of a checkpoint, if asked for one that takes LoRA adapters; for gptq and smoothquant `calibrated`.

    Raises:
        UnsupportedModel: the architecture cannot be exported exactly.
        CheckpointError: a tensor that the architecture has is not in the checkpoint, or the other way round.
    """
    spec, config = checkpoint.spec, checkpoint.config
    few = spec.layers if config.is_heterogeneous else min(TRACED_LAYERS, spec.layers)
    # Some layers say how many there are, and divide what they add by that.
    alike = unroll.alike([*decoder_layers(config, spec, spec.layers), *decoder_layers(config, spec, few)])
    traced = trace(config, spec, few if alike else spec.layers, precision.dtype)
    try:
        model = unroll.unroll(traced, spec.layers)
    except unroll.LayersDiffer:
        traced = trace(config, spec, spec.layers, precision.dtype)
        model = unroll.unroll(traced, spec.layers)
    known = calibrated or Calibration()
    smoothing = SmoothQuant(checkpoint, traced.aliases, known.inputs) if known.inputs else None
    context = passes.Context(
        spec,
        max_length,
        lambda module: rotary_tables(config, module, max_length),
        precision.quantization,
        adapters,
        smoothing,
    )
    hidden_states, lowering = _lower(model, traced, context)
    read = weight_values.attach(model.graph, checkpoint, traced.aliases, known.hessians)
    strip(model.graph)
    model.graph.name, model.producer_name = spec.model_type, "gptport"
    model.opset_imports.clear()
    model.opset_imports.update(dialect.OPSETS)
    return Graph(model, traced.layers_path, hidden_states, lowering, unread(checkpoint, read))


def _lower(model: ir.Model, traced: Trace, context: passes.Context) -> tuple[tuple[str, ...], Lowering]:
    """Run the passes; what the layers hand on to each other, and what became of the graph."""
    graph, layers_path, layers = model.graph, traced.layers_path, context.spec.layers
    of_parts = weight_parts.parts(graph, layers_path)
    counts = weight_parts.parameters(graph, of_parts)
    hidden_states = residuals.mark(graph, layers_path, layers)
    # The second layer, if there is one: in the first, no layer's addition stands before the norm.
    watched = min(1, layers - 1)
    before = layer_graph(graph, layers_path, watched)
    rewrites: list[Rewrite] = []

    def watch(name: str, places: int) -> None:
        operators = layer_graph(graph, layers_path, watched).operators
        rewrites.append(Rewrite(name, places, tuple(sorted(operators.items()))))

    passes.run(model, dialect.PASSES, context, watch)
    residuals.unmark(graph, hidden_states)
    after = layer_graph(graph, layers_path, watched)
    sizes = weight_parts.sizes(graph, of_parts, counts)
    left = quantize_experts.left(graph, context)
    in_blocks = multiply_by_rows.left(graph, context)
    return hidden_states, Lowering(traced.layers, tuple(rewrites), before, after, sizes, left, in_blocks)


def strip(graph: ir.Graph) -> None:
    """What lies inside of a graph needs no shapes and no scopes any more."""
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
