"""Every rewrite of the graph: which operators go, which come, how many; and what it must leave as it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
import torch

from gptport import passes, weights
from gptport.checkpoint import open_checkpoint
from gptport.dialects import onnxruntime as dialect
from gptport.errors import CheckpointError, UnsupportedModel
from gptport.operators import DOMAIN
from gptport.passes.cancel_views import cancel_views
from gptport.passes.fuse_attention import fuse_attention
from gptport.passes.fuse_bias_activation import fuse_bias_activation
from gptport.passes.fuse_skip_norm import fuse_skip_norm
from gptport.passes.pack_projections import pack_projections
from gptport.trace import rotary_tables, trace
from gptport.unroll import unroll

LAYERS, MAX_LENGTH = 3, 64
FLOAT = ir.DataType.FLOAT


class Traced:
    """A tiny checkpoint's graph, lowered step by step."""

    def __init__(self, folder):
        checkpoint = open_checkpoint(str(folder))
        config, spec = checkpoint.config, checkpoint.spec
        self.model = unroll(trace(config, spec, 2, torch.float32), spec.layers)
        self.graph = self.model.graph
        self.context = passes.Context(spec, MAX_LENGTH, lambda path: rotary_tables(config, path, MAX_LENGTH))

    def run_before(self, rewrite):
        """The passes of the dialect up to the first call of `rewrite`."""
        before = dialect.PASSES[: dialect.PASSES.index(rewrite)]
        passes.run(self.model, before, self.context)
        return self

    def run(self, rewrite):
        """How many places were changed, and by how much the number of each operator changed."""
        before = counted(self.graph)
        changed = rewrite(self.graph, self.context)
        passes.tidy(self.model)
        after = counted(self.graph)
        return changed, {op: after[op] - before[op] for op in before | after if after[op] != before[op]}

    def nodes(self, op_type):
        return [node for node in self.graph if node.op_type == op_type]


def counted(graph):
    return Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in graph)


@pytest.fixture
def traced_gpt2(gpt2):
    return Traced(gpt2)


@pytest.fixture
def traced_llama(llama):
    return Traced(llama)


def value(name, *shape, dtype=FLOAT):
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def ours(op_type, inputs, attributes, *shape):
    """A node of domain `gptport` with one output."""
    return shaped(ir.node(op_type, inputs, attributes, domain=DOMAIN), *shape)


def plain(op_type, inputs, *shape, **attributes):
    return shaped(ir.node(op_type, inputs, attributes), *shape)


def shaped(node, *shape):
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape(shape)
    return node


def model_of(inputs, nodes, outputs):
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 21, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def assert_left_alone(rewrite, model):
    before = [(node.op_type, list(node.inputs)) for node in model.graph]
    assert rewrite(model.graph, None) == 0
    assert [(node.op_type, list(node.inputs)) for node in model.graph] == before


# The whole dialect


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


# pack_projections


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


# fuse_attention


def test_attention_takes_rotary_and_the_packed_projection(traced_llama):
    changed, difference = traced_llama.run_before(fuse_attention).run(fuse_attention)
    assert changed == LAYERS
    assert difference == {
        "com.microsoft.GroupQueryAttention": LAYERS,
        "gptport.Attention": -LAYERS,
        "gptport.Rotary": -2 * LAYERS,
        "gptport.RotaryTable": -1,
        "Transpose": -3 * LAYERS,
        "Reshape": -2 * LAYERS,
        "Split": -LAYERS,
        "ReduceMax": 1,
        "Add": 1,
    }
    for layer, node in enumerate(traced_llama.nodes("GroupQueryAttention")):
        packed, key, value_, *others = node.inputs
        assert list(packed.shape)[2] == 64 + 2 * 32
        assert (key, value_) == (None, None)
        assert [each.name for each in others] == [
            f"past_key_values.{layer}.key",
            f"past_key_values.{layer}.value",
            "seqlens_k",
            "total_sequence_length",
            "model.rotary_emb.cos_cache",
            "model.rotary_emb.sin_cache",
        ]
        assert [each.name for each in node.outputs[1:]] == [f"present.{layer}.key", f"present.{layer}.value"]
        assert {name: attribute.value for name, attribute in node.attributes.items()} == {
            "num_heads": 4,
            "kv_num_heads": 2,
            "scale": 0.25,
            "do_rotary": 1,
        }
    assert list(traced_llama.graph.initializers["model.rotary_emb.cos_cache"].shape) == [MAX_LENGTH, 8]


def test_attention_without_rotary_has_no_tables(traced_gpt2):
    changed, difference = traced_gpt2.run_before(fuse_attention).run(fuse_attention)
    assert changed == LAYERS
    assert difference["com.microsoft.GroupQueryAttention"] == LAYERS
    for node in traced_gpt2.nodes("GroupQueryAttention"):
        assert len(node.inputs) == 7 or node.inputs[7:] == (None, None)
        assert node.attributes["do_rotary"].value == 0
        assert (node.attributes["num_heads"].value, node.attributes["kv_num_heads"].value) == (4, 4)


def test_three_projections_that_are_not_packed_go_in_as_they_are(traced_llama):
    changed, difference = traced_llama.run(fuse_attention)
    assert changed == LAYERS
    assert "Split" not in difference
    for node in traced_llama.nodes("GroupQueryAttention"):
        assert [each.producer().op_type for each in node.inputs[:3]] == ["Linear"] * 3


def test_a_graph_without_attention_stays():
    x = value("x", "batch", 8)
    tanh = plain("Tanh", [x], "batch", 8)
    assert_left_alone(fuse_attention, model_of([x], [tanh], [tanh.outputs[0]]))


# cancel_views


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


# fuse_skip_norm


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


# fuse_bias_activation


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


# lower


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


def test_rotary_outside_of_attention_is_refused_by_name():
    x, table = value("x", "batch", 4, "sequence", 16), value("table", "batch", "sequence", 16)
    node = ours("Rotary", [x, table], {}, "batch", 4, "sequence", 16)
    model = model_of([x, table], [node], [node.outputs[0]])
    with pytest.raises(UnsupportedModel, match="Rotary outside of attention"):
        dialect.lower(model.graph, None)


# Weights


class Tensors(dict):
    """A source of weights in memory."""

    def shape(self, name):
        return tuple(self[name].shape)

    def tensor(self, name):
        return self[name]


def test_a_weight_of_another_shape_than_configured_is_refused():
    model = model_of([], [], [])
    weights.parameter(model.graph, "w", FLOAT, (3, 2))
    with pytest.raises(CheckpointError, match=r"w has shape \[2, 2\] in the checkpoint, and \[3, 2\]"):
        weights.attach(model.graph, Tensors(w=torch.zeros(2, 2)), {})


def test_a_packed_transposed_weight_is_read_from_its_parts():
    model = model_of([], [], [])
    parts = [weights.parameter(model.graph, name, FLOAT, (rows, 2)) for name, rows in (("a", 1), ("b", 2))]
    packed = weights.transpose(weights.concatenate(parts, 0, "ab"))
    stored = {"a": torch.tensor([[1.0, 2.0]]), "alias of b": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}
    weights.attach(model.graph, Tensors(stored), {"b": ("alias of b",)})
    np.testing.assert_array_equal(packed.const_value.numpy(), [[1, 3, 5], [2, 4, 6]])
