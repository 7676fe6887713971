"""The residual stream: the hidden states that one decoder layer hands to the next."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from .trace import layer_of

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_ir as ir


_NAME = "hidden_states."


def mark(graph: ir.Graph, layers_path: str, layers: int) -> tuple[str, ...]:
    """Name what each layer hands on `hidden_states.LAYER` and make it an output of the graph, so that passes keep the name.

    Returns:
        the names, by layer; none, and nothing is marked, where a layer hands on more than one value.
    """
    handed_on: dict[int, list[ir.Value]] = defaultdict(list)
    for node in graph:
        layer = layer_of(node, layers_path)
        if layer is not None:
            handed_on[layer] += [value for value in node.outputs if _leaves(value, layer, layers_path)]
    if any(len(handed_on[layer]) != 1 for layer in range(layers)):
        return ()
    for layer in range(layers):
        (value,) = handed_on[layer]
        value.name = f"{_NAME}{layer}"
        graph.outputs.append(value)
    return tuple(f"{_NAME}{layer}" for layer in range(layers))


def unmark(graph: ir.Graph, names: Collection[str]) -> None:
    """The marked values are no outputs any more; they keep their names."""
    for value in [each for each in graph.outputs if each.name in names]:
        graph.outputs.remove(value)


def is_marked(value: ir.Value) -> bool:
    """Whether a layer hands that value on, in a graph that was marked."""
    return str(value.name).startswith(_NAME)


def _leaves(value: ir.Value, layer: int, layers_path: str) -> bool:
    return any(layer_of(user, layers_path) != layer for user, _ in value.uses())
