"""What is read from an ONNX file and from onnxruntime's trace of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from benchmarks import graph, profile
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A lookup in a table, then two products with a weight of 256 × 256."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"], "lookup"),
        helper.make_node("MatMul", ["x", "layers.0.w"], ["y"], "first"),
        helper.make_node("MatMul", ["y", "layers.1.w"], ["z"], "second"),
    ]
    shapes = {"table": (1000, 256), "layers.0.w": (256, 256), "layers.1.w": (256, 256)}
    weights = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 256])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [ids], [out], weights)), path)
    return path


def test_a_table_that_is_looked_up_in_is_not_read(model: Path) -> None:
    assert graph.decoded_bytes(model) == 2 * 256 * 256 * 4


def test_nodes_that_all_layers_have_are_counted_for_a_layer() -> None:
    assert graph.per_layer(Counter({"MatMul": 121, "Mul": 30, "Gather": 2}), layers=30) == 5


def test_a_profile_is_of_the_last_steps(model: Path) -> None:
    """The first run, the prompt's, took long and is not counted; the same weight of all layers is one row."""
    kernels = [
        {"name": f"{node}_kernel_time", "ts": at + 1, "dur": duration, "args": {"op_name": "MatMul"}}
        for at, node, duration in ((0, "first", 90), (100, "first", 3), (100, "second", 5), (200, "first", 4))
    ]
    runs = [
        {"name": "model_run", "ts": at, "dur": duration} for at, duration in ((0, 95), (100, 9), (200, 7))
    ]
    step, shares = profile.summarize(runs + kernels, 2, graph.weights_read(model))
    assert step == 8.0
    both = 2 * 256 * 256 * 4
    assert shares == [profile.Share("MatMul", "layers.*.w", calls=1.5, microseconds=6.0, bytes=both)]
