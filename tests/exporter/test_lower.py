"""What no fusion took becomes a plain operator."""

from __future__ import annotations

import pytest

from gptport import passes, weights
from gptport.dialects import onnxruntime as dialect
from gptport.passes.fuse_attention import fuse_attention
from graphs import (
    FLOAT,
    LAYERS,
    counted,
    model_of,
    ours,
    value,
)


def test_what_no_fusion_took_becomes_a_plain_operator(traced_gpt2):
    """No fusion at all, but for attention, which has no plain operator."""
    passes.run(traced_gpt2.model, (fuse_attention,), traced_gpt2.context)
    changed, difference = traced_gpt2.run(dialect.lower)
    linears_, norms = 4 * LAYERS + 1, 2 * LAYERS + 1
    assert changed == linears_ + norms + LAYERS + 1
    assert difference == {
        "gptport.Linear": -linears_,
        "gptport.Norm": -norms,
        "gptport.Activation": -LAYERS,
        "gptport.LastPosition": -1,
        "MatMul": 4 * LAYERS,
        "Add": 4 * LAYERS,
        "Gemm": 1,
        "LayerNormalization": norms,
        "Gelu": LAYERS,
        "Gather": 1,
        "Cast": 1,
        "Unsqueeze": 2,
        "Sub": 2,
        "Max": 1,
        "GatherND": 1,
        "Reshape": 1,
    }


@pytest.mark.parametrize(
    ("kind", "operator", "attributes"),
    [
        ("silu", "com.microsoft.QuickGelu", {"alpha": 1.0}),
        ("gelu_quick", "com.microsoft.QuickGelu", {"alpha": pytest.approx(1.702)}),
        ("relu", "Relu", {}),
        ("gelu", "Gelu", {"approximate": "none"}),
        ("gelu_tanh", "Gelu", {"approximate": "tanh"}),
    ],
)
def test_every_activation_has_an_operator(kind, operator, attributes):
    x = value("x", "batch", 8)
    node = ours("Activation", [x], {"kind": kind}, "batch", 8)
    model = model_of([x], [node], [node.outputs[0]])
    assert dialect.lower(model.graph, None) == 1
    assert counted(model.graph) == {operator: 1}
    assert {name: attribute.value for name, attribute in model.graph[0].attributes.items()} == attributes


@pytest.mark.parametrize(("transposed", "names"), [(0, "w.weight.T"), (1, "w.weight")])
def test_a_product_multiplies_by_a_matrix_that_is_stored_as_it_is_used(transposed, names):
    x = value("x", "batch", "sequence", 8)
    model = model_of([x], [], [])
    weight = weights.parameter(model.graph, "w.weight", FLOAT, (8, 4) if transposed else (4, 8))
    node = ours("Linear", [x, weight], {"transposed": transposed}, "batch", "sequence", 4)
    model.graph.append(node)
    model.graph.outputs.append(node.outputs[0])
    dialect.lower(model.graph, None)
    (product,) = model.graph
    assert (product.op_type, product.inputs[1].name) == ("MatMul", names)
    assert list(product.inputs[1].shape) == [8, 4]
