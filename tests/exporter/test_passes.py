"""The rewrites around attention: which operators go, which come, how many; and what they must leave as it is."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from gptport import passes, weights
from gptport.dialects import onnxruntime as dialect
from gptport.passes.cancel_views import cancel_views
from gptport.passes.fuse_attention import fuse_attention
from gptport.passes.fuse_bias_activation import fuse_bias_activation
from gptport.passes.fuse_skip_norm import fuse_skip_norm
from gptport.passes.pack_projections import pack_projections
from gptport.passes.unflatten import unflatten
from graphs import (
    FLOAT,
    LAYERS,
    assert_left_alone,
    counted,
    model_of,
    ours,
    plain,
    value,
)


def test_a_gpt2_layer_has_nine_nodes(traced_gpt2):
    passes.run(traced_gpt2.model, dialect.PASSES, traced_gpt2.context)
    around = {"ReduceMax": 1, "Add": 1, "Gather": 3, "com.microsoft.SkipLayerNormalization": 1}
    last = {"Cast": 1, "Unsqueeze": 2, "Sub": 2, "Max": 1, "GatherND": 1, "Reshape": 1, "Gemm": 1}
    layer = {
        "MatMul": 4,
        "Add": 1,
        "com.microsoft.GroupQueryAttention": 1,
        "com.microsoft.SkipLayerNormalization": 2,
        "com.microsoft.FastGelu": 1,
    }
    assert sum(layer.values()) == 9
    assert counted(traced_gpt2.graph) == sum([Counter(layer)] * LAYERS, Counter(around) + Counter(last))


def test_a_llama_layer_has_ten_nodes(traced_llama):
    passes.run(traced_llama.model, dialect.PASSES, traced_llama.context)
    around = {"ReduceMax": 1, "Add": 1, "Gather": 2, "SimplifiedLayerNormalization": 1}
    last = {"Cast": 1, "Unsqueeze": 2, "Sub": 2, "Max": 1, "GatherND": 1, "Reshape": 1, "Gemm": 1}
    layer = {
        "MatMul": 4,
        "com.microsoft.GroupQueryAttention": 1,
        "com.microsoft.SkipSimplifiedLayerNormalization": 2,
        "Split": 1,
        "com.microsoft.QuickGelu": 1,
        "Mul": 1,
    }
    assert sum(layer.values()) == 10
    assert counted(traced_llama.graph) == sum([Counter(layer)] * LAYERS, Counter(around) + Counter(last))


def test_nothing_of_our_own_domain_is_left(traced_gpt2, traced_llama):
    for traced in (traced_gpt2, traced_llama):
        passes.run(traced.model, dialect.PASSES, traced.context)
        assert {node.domain for node in traced.graph} == {"", "com.microsoft"}


def test_query_key_and_value_become_one_product_and_so_do_gate_and_up(traced_llama):
    changed, difference = traced_llama.run_before(pack_projections).run(pack_projections)
    assert changed == 2 * LAYERS
    assert difference == {"gptport.Linear": -3 * LAYERS, "Split": 2 * LAYERS}
    qkv, gate_up = traced_llama.nodes("Split")[:2]
    assert [node.inputs[1].const_value.numpy().tolist() for node in (qkv, gate_up)] == [
        [64, 32, 32],
        [96, 96],
    ]
    packed = qkv.inputs[0].producer().inputs[1]
    prefix = "model.layers.0.self_attn"
    assert weights.of(packed).names == tuple(f"{prefix}.{part}_proj.weight" for part in "qkv")
    assert list(packed.shape) == [128, 64]


def test_projections_that_are_packed_in_the_checkpoint_stay(traced_gpt2):
    assert traced_gpt2.run(pack_projections) == (0, {})


def linears(x_names, modules, biases):
    x = {name: value(name, "batch", "sequence", 8) for name in set(x_names)}
    nodes = []
    model = model_of(list(x.values()), [], [])
    for x_name, module, bias in zip(x_names, modules, biases, strict=True):
        inputs = [x[x_name], weights.parameter(model.graph, f"{module}.weight", FLOAT, (4, 8))]
        if bias:
            inputs.append(weights.parameter(model.graph, f"{module}.bias", FLOAT, (4,)))
        nodes.append(ours("Linear", inputs, {"transposed": 0}, "batch", "sequence", 4))
    model.graph.extend(nodes)
    total = plain("Concat", [node.outputs[0] for node in nodes], "batch", "sequence", 4 * len(nodes), axis=-1)
    model.graph.append(total)
    model.graph.outputs.append(total.outputs[0])
    return model


def test_biases_are_packed_with_their_weights():
    model = linears(["x", "x"], ["attn.q", "attn.k"], [True, True])
    assert pack_projections(model.graph, None) == 1
    packed = model.graph.initializers["attn.q+k.bias"]
    assert weights.of(packed).names == ("attn.q.bias", "attn.k.bias")
    assert list(packed.shape) == [8]


@pytest.mark.parametrize(
    ("inputs", "modules", "biases"),
    [
        (["x", "y"], ["attn.q", "attn.k"], [False, False]),
        (["x", "x"], ["attn.q", "mlp.up"], [False, False]),
        (["x", "x"], ["attn.q", "attn.k"], [True, False]),
    ],
    ids=["of different inputs", "of different modules", "with and without a bias"],
)
def test_projections_stay_apart(inputs, modules, biases):
    assert_left_alone(pack_projections, linears(inputs, modules, biases))


def test_the_two_views_around_attention_cancel(traced_gpt2, traced_llama):
    for traced in (traced_gpt2, traced_llama):
        passes.run(traced.model, (pack_projections, fuse_attention), traced.context)
        assert traced.run(cancel_views) == (LAYERS, {"Reshape": -2 * LAYERS})


def reshaped(middle, last):
    x = value("x", "batch", "sequence", 8)
    shapes = [ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64)) for name in ("a", "b")]
    one = plain("Reshape", [x, shapes[0]], *middle)
    two = plain("Reshape", [one.outputs[0], shapes[1]], *last)
    end = plain("Tanh", [two.outputs[0]], *last)
    return model_of([x, *shapes], [one, two, end], [end.outputs[0]])


def test_a_reshape_back_is_what_was_reshaped():
    model = reshaped(["batch", "sequence", 2, 4], ["batch", "sequence", 8])
    assert cancel_views(model.graph, None) == 1
    passes.tidy(model)
    assert counted(model.graph) == {"Tanh": 1}
    assert model.graph[0].inputs[0].name == "x"


@pytest.mark.parametrize("last", [["batch", "sequence", 4, 2], ["sequence", "batch", 8]])
def test_a_reshape_to_another_shape_stays(last):
    assert_left_alone(cancel_views, reshaped(["batch", "sequence", 2, 4], last))


def test_a_cast_to_another_type_stays():
    x = value("x", "batch", 8)
    cast = ir.node("Cast", [x], {"to": ir.DataType.FLOAT16})
    cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT16), ir.Shape(["batch", 8])
    assert_left_alone(cancel_views, model_of([x], [cast], [cast.outputs[0]]))


def test_layer_norms_take_the_addition_and_the_bias_before_them(traced_gpt2):
    changed, difference = traced_gpt2.run_before(fuse_skip_norm).run(fuse_skip_norm)
    assert changed == 2 * LAYERS + 1
    assert difference == {
        "com.microsoft.SkipLayerNormalization": 2 * LAYERS + 1,
        "gptport.Norm": -(2 * LAYERS + 1),
        "Add": -(2 * LAYERS + 1),
    }
    embeddings, *others = traced_gpt2.nodes("SkipLayerNormalization")
    assert len(embeddings.inputs) == 4
    assert [node.inputs[4].name.rsplit(".", 2)[1] for node in others] == ["c_proj"] * 2 * LAYERS
    assert [node.attributes["epsilon"].value for node in others] == pytest.approx([1e-5] * 2 * LAYERS)


def test_rms_norms_take_the_addition_before_them(traced_llama):
    changed, difference = traced_llama.run_before(fuse_skip_norm).run(fuse_skip_norm)
    assert changed == 2 * LAYERS
    assert difference == {
        "com.microsoft.SkipSimplifiedLayerNormalization": 2 * LAYERS,
        "gptport.Norm": -2 * LAYERS,
        "Add": -2 * LAYERS,
    }
    for node in traced_llama.nodes("SkipSimplifiedLayerNormalization"):
        assert len(node.inputs) == 3
        assert [each.name != "" for each in node.outputs] == [True, False, False, True]


def added_and_normed(second_shape):
    x, y, gamma = value("x", "batch", "sequence", 8), value("y", *second_shape), value("gamma", 8)
    add = plain("Add", [x, y], "batch", "sequence", 8)
    norm = ours(
        "Norm",
        [add.outputs[0], gamma],
        {"kind": "rms", "epsilon": 1e-5, "offset": 0.0},
        "batch",
        "sequence",
        8,
    )
    return model_of([x, y, gamma], [add, norm], [norm.outputs[0]])


def test_an_addition_of_equal_shapes_is_taken():
    model = added_and_normed(["batch", "sequence", 8])
    assert fuse_skip_norm(model.graph, None) == 1
    assert counted(model.graph) == {"com.microsoft.SkipSimplifiedLayerNormalization": 1}


@pytest.mark.parametrize("shape", [[8], ["batch", 1, 8]])
def test_an_addition_that_broadcasts_is_not_taken(shape):
    assert_left_alone(fuse_skip_norm, added_and_normed(shape))


def test_a_bias_whose_product_is_used_elsewhere_stays_where_it_is():
    x, y, w, b, gamma = (value(n, "batch", "sequence", 8) for n in ("x", "y", "w", "b", "gamma"))
    linear = ours("Linear", [y, w, b], {"transposed": 0}, "batch", "sequence", 8)
    add = plain("Add", [x, linear.outputs[0]], "batch", "sequence", 8)
    norm = ours(
        "Norm",
        [add.outputs[0], gamma],
        {"kind": "rms", "epsilon": 1e-5, "offset": 0.0},
        "batch",
        "sequence",
        8,
    )
    other = plain("Tanh", [linear.outputs[0]], "batch", "sequence", 8)
    model = model_of([x, y, w, b, gamma], [linear, add, norm, other], [norm.outputs[0], other.outputs[0]])
    assert fuse_skip_norm(model.graph, None) == 1
    assert [each.name for each in linear.inputs] == ["y", "w", "b"]


def test_gelu_takes_the_bias_before_it(traced_gpt2):
    changed, difference = traced_gpt2.run_before(fuse_bias_activation).run(fuse_bias_activation)
    assert changed == LAYERS
    assert difference == {"com.microsoft.FastGelu": LAYERS, "gptport.Activation": -LAYERS}
    for layer, node in enumerate(traced_gpt2.nodes("FastGelu")):
        assert node.inputs[1].name == f"transformer.h.{layer}.mlp.c_fc.bias"
        assert len(node.inputs[0].producer().inputs) == 2


def test_silu_takes_no_bias(traced_llama):
    assert traced_llama.run_before(fuse_bias_activation).run(fuse_bias_activation) == (0, {})


def activated(kind, *, bias=True, used_twice=False):
    x, w, b = value("x", "batch", "sequence", 8), value("w", 8, 8), value("b", 8)
    linear = ours("Linear", [x, w, b][: 2 + bias], {"transposed": 0}, "batch", "sequence", 8)
    activation = ours("Activation", [linear.outputs[0]], {"kind": kind}, "batch", "sequence", 8)
    other = [plain("Tanh", [linear.outputs[0]], "batch", "sequence", 8)] if used_twice else []
    nodes = [linear, activation, *other]
    return model_of([x, w, b], nodes, [node.outputs[0] for node in nodes[1:]])


@pytest.mark.parametrize(("kind", "operator"), [("gelu", "BiasGelu"), ("gelu_tanh", "FastGelu")])
def test_each_gelu_has_its_operator(kind, operator):
    model = activated(kind)
    assert fuse_bias_activation(model.graph, None) == 1
    assert counted(model.graph) == {"gptport.Linear": 1, f"com.microsoft.{operator}": 1}


@pytest.mark.parametrize(
    "model",
    [activated("relu"), activated("gelu", bias=False), activated("gelu", used_twice=True)],
    ids=["not a gelu", "no bias", "the product is used elsewhere"],
)
def test_an_activation_stays(model):
    assert_left_alone(fuse_bias_activation, model)


def feed_forward(*, flat_residual=True):
    """OPT's: flattened to [B·S, 8], and back at the end."""
    x = value("x", "batch", "sequence", 8)
    other = value("other", "batch*sequence", 8)
    model = model_of([x] if flat_residual else [x, other], [], [])
    parameters = [weights.parameter(model.graph, f"fc{i}.weight", FLOAT, (8, 8)) for i in (1, 2)]
    down = plain("Reshape", [x, passes.constant(model.graph, [-1, 8])], "batch*sequence", 8)
    first = ours("Linear", [down.outputs[0], parameters[0]], {"transposed": 0}, "batch*sequence", 8)
    relu = ours("Activation", [first.outputs[0]], {"kind": "relu"}, "batch*sequence", 8)
    second = ours("Linear", [relu.outputs[0], parameters[1]], {"transposed": 0}, "batch*sequence", 8)
    residual = down.outputs[0] if flat_residual else other
    add = plain("Add", [residual, second.outputs[0]], "batch*sequence", 8)
    length = value("lengths", 3, dtype=ir.DataType.INT64)
    up = plain("Reshape", [add.outputs[0], length], "batch", "sequence", 8)
    end = plain("Tanh", [up.outputs[0]], "batch", "sequence", 8)
    model.graph.inputs.append(length)
    model.graph.extend([down, first, relu, second, add, up, end])
    model.graph.outputs.append(end.outputs[0])
    return model


def test_what_was_flattened_and_comes_back_never_was():
    model = feed_forward()
    assert passes.run(model, (unflatten, cancel_views), None) == {"unflatten": 4, "cancel_views": 1}
    assert counted(model.graph) == {"gptport.Linear": 2, "gptport.Activation": 1, "Add": 1, "Tanh": 1}
    assert [list(node.outputs[0].shape) for node in model.graph] == [["batch", "sequence", 8]] * 5


def test_an_addition_to_something_flat_stays_flat():
    model = feed_forward(flat_residual=False)
    assert unflatten(model.graph, None) == 3
    passes.tidy(model)
    assert counted(model.graph)["Reshape"] == 2


def test_a_parameter_that_is_transposed_is_stored_so():
    x = value("x", "rows", 8)
    model = model_of([x], [], [])
    weight = weights.parameter(model.graph, "gate.weight", FLOAT, (4, 8))
    turned = plain("Transpose", [weight], 8, 4, perm=[1, 0])
    product = plain("MatMul", [x, turned.outputs[0]], "rows", 4)
    model.graph.extend([turned, product])
    model.graph.outputs.append(product.outputs[0])
    assert passes.run(model, (cancel_views,), None) == {"cancel_views": 1}
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert product.inputs[1].name == "gate.weight.T"
