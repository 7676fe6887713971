"""Stamp a traced decoder layer out: a graph of two layers becomes one of N.

The two layers must be the same but for their weights and their part of the cache, node by node; what the second takes
from the first is what every layer takes from the one before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from . import weights
from .errors import UnsupportedModel
from .trace import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from .trace import Trace

_CACHE = ("past_key_values", "present")


class LayersDiffer(UnsupportedModel):
    """The two traced layers are not alike; the whole model has to be traced."""


@dataclass(frozen=True)
class _Layer:
    """The nodes of one layer, in order, and the position of each value that they produce."""

    index: int
    nodes: list[ir.Node]
    produced: dict[ir.Value, tuple[int, int]]

    @classmethod
    def of(cls, graph: ir.Graph, layers_path: str, index: int) -> _Layer:
        nodes = [node for node in graph if layer_of(node, layers_path) == index]
        produced = {value: (i, o) for i, node in enumerate(nodes) for o, value in enumerate(node.outputs)}
        return cls(index, nodes, produced)

    def at(self, position: tuple[int, int]) -> ir.Value:
        node, output = position
        return self.nodes[node].outputs[output]


def unroll(trace: Trace, layers: int) -> ir.Model:
    """The model with `layers` layers, from a trace of two (changed in place).

    Raises:
        LayersDiffer: the two traced layers are not alike.
    """
    if trace.layers == layers:
        return trace.model
    assert trace.layers == 2 < layers, "two layers are traced, or all"
    graph = trace.model.graph
    first, template = (_Layer.of(graph, trace.layers_path, index) for index in (0, 1))
    carried = _carried(first, template, trace.layers_path)
    after = _uses_outside(template)
    previous = template
    for index in range(2, layers):
        values = {value: previous.at(first.produced[value]) for value in carried}
        previous = _stamp(graph, template, index, trace.layers_path, values)
    for node, i, position in after:
        node.replace_input_with(i, previous.at(position))
    graph.sort()
    return trace.model


def _uses_outside(layer: _Layer) -> list[tuple[ir.Node, int, tuple[int, int]]]:
    """(node, index of its input, position in the layer) for each use of the layer's values by what follows the layers."""
    inside = set(layer.nodes)
    return [
        (node, i, position)
        for value, position in layer.produced.items()
        for node, i in value.uses()
        if node not in inside
    ]


def _carried(first: _Layer, template: _Layer, layers_path: str) -> set[ir.Value]:
    """The values that layer 1 takes from layer 0, after checking that the layers are alike."""
    if len(first.nodes) != len(template.nodes):
        raise LayersDiffer(f"layer 0 has {len(first.nodes)} nodes, layer 1 {len(template.nodes)}")
    carried = set()
    for a, b in zip(first.nodes, template.nodes, strict=True):
        if (
            a.op_identifier() != b.op_identifier()
            or not _same_attributes(a, b)
            or len(a.inputs) != len(b.inputs)
        ):
            raise LayersDiffer(f"{a.op_type} of layer 0 is {b.op_type} in layer 1, or has other attributes")
        for x, y in zip(a.inputs, b.inputs, strict=True):
            if y is not None and y in first.produced:
                carried.add(y)
            elif not _alike(x, y, first, template, layers_path):
                raise LayersDiffer(f"an input of {a.op_type} differs: {x and x.name} and {y and y.name}")
    return carried


def _same_attributes(a: ir.Node, b: ir.Node) -> bool:
    if a.attributes.keys() != b.attributes.keys():
        return False
    for name, attribute in a.attributes.items():
        x, y = attribute.value, b.attributes[name].value
        if isinstance(x, ir.TensorProtocol):
            x, y = x.tobytes(), y.tobytes()
        if x != y:
            return False
    return True


def _alike(x: ir.Value | None, y: ir.Value | None, first: _Layer, template: _Layer, layers_path: str) -> bool:
    if x is None or y is None:
        return x is y
    if x in first.produced or y in template.produced:
        return first.produced.get(x) == template.produced.get(y)
    return x is y or _renamed(str(x.name), layers_path, 0, 1) == y.name


def _renamed(name: str, layers_path: str, old: int, new: int) -> str:
    for prefix in (layers_path, *_CACHE):
        if name.startswith(f"{prefix}.{old}."):
            return f"{prefix}.{new}.{name.removeprefix(f'{prefix}.{old}.')}"
    return name


def _stamp(
    graph: ir.Graph, template: _Layer, index: int, layers_path: str, values: dict[ir.Value, ir.Value]
) -> _Layer:
    """Append a copy of the template as layer `index`; `values` says what stands for the values of the layer before."""
    nodes = []
    for node in template.nodes:
        inputs = [
            value and (values.get(value) or _own(graph, value, index, layers_path, values))
            for value in node.inputs
        ]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            version=node.version,
        )
        scope = node.metadata_props.get("scope", "")
        copy.metadata_props["scope"] = _renamed(f"{scope}.", layers_path, 1, index)[:-1]
        for old, new in zip(node.outputs, copy.outputs, strict=True):
            new.name = _renamed(str(old.name), layers_path, 1, index)
            new.name = f"layer{index}.{old.name}" if new.name == old.name else new.name
            new.type, new.shape = old.type, old.shape
            values[old] = new
            if old.is_graph_output() and str(old.name).startswith(_CACHE[1]):
                graph.outputs.append(new)
        graph.append(copy)
        nodes.append(copy)
    return _Layer(index, nodes, {})


def _own(
    graph: ir.Graph, value: ir.Value, index: int, layers_path: str, values: dict[ir.Value, ir.Value]
) -> ir.Value:
    """What stands in layer `index` for an input that no layer produced: its own weight or cache, or what all layers share."""
    name = _renamed(str(value.name), layers_path, 1, index)
    if name == value.name or value.producer() is not None:
        return value
    if value.is_graph_input():
        own = ir.Value(name=name, type=value.type, shape=value.shape)
        graph.inputs.append(own)
    else:
        own = weights.renamed(value, name)
    values[value] = own
    return own


def alike(layers: Iterable[nn.Module]) -> bool:
    """Whether decoder layers are built alike: same modules, shapes and settings, but for what says which layer it is."""
    return len({_signature(layer) for layer in layers}) < 2


def _signature(layer: nn.Module) -> tuple[object, ...]:
    settings = [
        (path, type(module), name, value)
        for path, module in layer.named_modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, int | float | str | bool | None) and "idx" not in name and "layer_id" not in name
    ]
    shapes = [(name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()]
    return (*settings, *shapes)
