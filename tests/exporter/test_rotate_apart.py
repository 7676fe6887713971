"""A rotation that attention cannot take in is an operator of its own, and computes the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from gptport import passes
from gptport.dialects import onnxruntime as dialect
from gptport.passes.fuse_attention import fuse_attention
from gptport.passes.rotate_apart import rotate_apart
from gptport.rotary import _rotated
from graphs import FLOAT, LAYERS, model_of, ours, plain, value

HEADS, PAIRS, LENGTH = 4, 8, 32
ANGLES = np.random.default_rng(0).uniform(-3, 3, (LENGTH, PAIRS)).astype(np.float32)


@pytest.mark.parametrize("rest", [0, 12], ids=["whole", "partial"])
@pytest.mark.parametrize("backwards", [0, 1])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_it_rotates_as_it_is_defined(interleaved, backwards, rest):
    dims = ("batch", HEADS, "sequence", 2 * PAIRS + rest)
    x, positions = value("x", *dims), value("positions", "batch", "sequence", dtype=ir.DataType.INT64)
    table = ours("RotaryTable", [x, positions], {"module": "rope"}, "batch", "sequence", 2 * PAIRS)
    attributes = {"interleaved": interleaved, **({"backwards": 1} if backwards else {})}
    node = ours("Rotary", [x, table.outputs[0]], attributes, *dims)
    model = model_of([x, positions], [table, node], [node.outputs[0]])
    context = passes.Context(None, LENGTH, lambda _: (np.cos(ANGLES), np.sin(ANGLES)))
    assert passes.run(model, (rotate_apart,), context) == {"rotate_apart": 1}
    model.graph.outputs[0].name = "out"
    model.graph.opset_imports.update(dialect.OPSETS)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    given, at = torch.randn(2, HEADS, 5, 2 * PAIRS + rest), np.array([[3, 4, 5, 6, 7], [0, 1, 2, 31, 30]])
    (got,) = session.run(["out"], {"x": given.numpy(), "positions": at})
    angles = torch.from_numpy(ANGLES[at] * (-1 if backwards else 1))[:, None]
    rotated = _rotated(given[..., : 2 * PAIRS], angles, interleaved=bool(interleaved))
    assert torch.allclose(torch.from_numpy(got), torch.cat([rotated, given[..., 2 * PAIRS :]], -1), atol=1e-5)


@pytest.mark.parametrize("changed", ["query", "key"])
def test_attention_leaves_a_rotation_that_something_follows(traced_llama, changed):
    graph = traced_llama.run_before(fuse_attention).graph
    for node in traced_llama.nodes("Attention"):
        i = ("query", "key").index(changed)
        after = plain("Tanh", [node.inputs[i]], *node.inputs[i].shape)
        graph.insert_before(node, after)
        node.replace_input_with(i, after.outputs[0])
    traced_llama.run(fuse_attention)
    assert [node.attributes["do_rotary"].value for node in traced_llama.nodes("GroupQueryAttention")] == [
        0
    ] * LAYERS
    assert traced_llama.run(rotate_apart)[0] == 2 * LAYERS
    assert all(node.outputs[0].dtype in (None, FLOAT) for node in traced_llama.nodes("RotaryEmbedding"))
