"""Changes of a graph of another exporter, such as other versions of it would have made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def edited(folder: Path, change: Callable[[ir.Graph], None]) -> Path:
    """The directory, its graph changed by a function."""
    model = ir.load(folder / "model.onnx")
    change(model.graph)
    ir.save(model, folder / "model.onnx")
    return folder


def input_of(graph: ir.Graph, name: str) -> ir.Value:
    """The input of that name."""
    return next(value for value in graph.inputs if value.name == name)


def constant(graph: ir.Graph, name: str, values: object) -> ir.Value:
    """A new initializer with these integers."""
    tensor = ir.tensor(np.array(values, np.int64), name=name)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
    graph.register_initializer(value)
    return value


def rename(old: str, new: str) -> Callable[[ir.Graph], None]:
    """Give an input another name."""

    def change(graph: ir.Graph) -> None:
        input_of(graph, old).name = new

    return change


def keep_logits(graph: ir.Graph) -> None:
    """Take only as many of the last positions to the head as `num_logits_to_keep` says, or all for 0."""
    kept = ir.Value(name="num_logits_to_keep", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    graph.inputs.append(kept)
    head = next(value for value in graph.outputs if value.name == "logits").producer()
    axis, end = constant(graph, "axis.1", [1]), constant(graph, "end", [2**62])
    negative = ir.node("Neg", [kept])
    start = ir.node("Reshape", [negative.outputs[0], constant(graph, "one.row", [1])])
    last = ir.node("Slice", [head.inputs[0], start.outputs[0], end, axis])
    graph.insert_before(head, [negative, start, last])
    last.outputs[0].type, last.outputs[0].shape = head.inputs[0].type, head.inputs[0].shape
    head.replace_input_with(0, last.outputs[0])
