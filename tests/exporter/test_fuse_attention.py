"""Attention as one operator, and its projections as one product in its order."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from gptport import passes, weight_values, weights
from gptport.operators import DOMAIN
from gptport.passes.arrange_projections import arrange_projections
from gptport.passes.fuse_attention import fuse_attention
from graphs import (
    FLOAT,
    LAYERS,
    MAX_LENGTH,
    Tensors,
    assert_left_alone,
    counted,
    model_of,
    ours,
    plain,
    shaped,
    value,
)


def test_attention_takes_rotary(traced_llama):
    changed, difference = traced_llama.run_before(fuse_attention).run(fuse_attention)
    assert changed == LAYERS
    assert difference == {
        "com.microsoft.GroupQueryAttention": LAYERS,
        "gptport.Attention": -LAYERS,
        "gptport.Rotary": -2 * LAYERS,
        "gptport.RotaryTable": -1,
        "Transpose": -3 * LAYERS,
        "Reshape": -2 * LAYERS,
        "ReduceMax": 1,
        "Add": 1,
    }
    for layer, node in enumerate(traced_llama.nodes("GroupQueryAttention")):
        *rows, past_key, past_value, lengths, total, cos, sin = node.inputs
        assert [list(each.shape)[2] for each in rows] == [64, 32, 32]
        others = [past_key, past_value, lengths, total, cos, sin]
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


def test_a_graph_without_attention_stays():
    x = value("x", "batch", 8)
    tanh = plain("Tanh", [x], "batch", 8)
    assert_left_alone(fuse_attention, model_of([x], [tanh], [tanh.outputs[0]]))


@pytest.mark.parametrize("times", [0.25, None], ids=["a number", "another value"])
def test_a_query_times_a_number_is_a_scale(times):
    query, key, rows = (value(name, "batch", "sequence", 32) for name in ("query", "key", "rows"))
    factor = value("factor", "batch", "sequence", 32)
    model = model_of([query, key, rows, factor, value("seqlens_k", "batch", dtype=ir.DataType.INT32)], [], [])
    by = factor if times is None else passes.constant(model.graph, times, FLOAT)
    scaled = plain("Mul", [query, by], "batch", "sequence", 32)
    add_attention(model.graph, [scaled.outputs[0], key, rows], before=[scaled])
    fuse_attention(model.graph, None)
    passes.tidy(model)
    (attention,) = (node for node in model.graph if node.op_type == "GroupQueryAttention")
    expected = (query, 0.125) if times else (scaled.outputs[0], 0.5)
    assert (attention.inputs[0], attention.attributes["scale"].value) == expected


def add_attention(graph, rows, before):
    """Attention of two heads of 16 on `rows` [B, S, 32]."""
    nodes = list(before)
    for each in rows:
        view = plain("Reshape", [each, passes.constant(graph, [0, 0, 2, 16])], "batch", "sequence", 2, 16)
        nodes += [view, plain("Transpose", view.outputs, "batch", 2, "sequence", 16, perm=[0, 2, 1, 3])]
    past = [value(name, "batch", 2, 64, 16) for name in ("past_key", "past_value")]
    inputs = [*(nodes[place].outputs[0] for place in (-5, -3, -1)), *past, graph.inputs[-1]]
    attention = ir.node("Attention", inputs, {"scale": 0.5}, domain=DOMAIN, num_outputs=3)
    shaped(attention, "batch", "sequence", 2, 16)
    graph.inputs.extend(past)
    graph.extend([*nodes, attention])
    graph.outputs.append(attention.outputs[0])


# arrange_projections


def test_attention_takes_the_packed_projection(traced_gpt2, traced_llama):
    for traced in (traced_gpt2, traced_llama):
        changed, difference = traced.run_before(arrange_projections).run(arrange_projections)
        assert (changed, difference) == (LAYERS, {"Split": -LAYERS})
        for node in traced.nodes("GroupQueryAttention"):
            assert node.inputs[0].producer().op_type == "Linear"
            assert node.inputs[1:3] == (None, None)
        assert not [name for name in traced.graph.initializers if "arranged" in name]


def test_projections_that_are_not_packed_go_in_as_they_are(traced_llama):
    traced_llama.run(fuse_attention)
    assert traced_llama.run(arrange_projections) == (0, {})


def head_by_head(*, bent=False):
    """Attention of two heads of two features on a projection with [q, k, v] of the first head, then of the second."""
    x = value("x", "batch", "sequence", 8)
    model = model_of([x], [], [])
    parameters = [
        weights.parameter(model.graph, "qkv.weight", FLOAT, (12, 8)),
        weights.parameter(model.graph, "qkv.bias", FLOAT, (12,)),
    ]
    linear = ours("Linear", [x, *parameters], {"transposed": 0}, "batch", "sequence", 12)
    shape = passes.constant(model.graph, [0, 0, 2, 3, 2])
    heads = plain("Reshape", [linear.outputs[0], shape], "batch", "sequence", 2, 3, 2)
    nodes, rows = [linear, heads], []
    for place in range(3):
        picked = plain(
            "Gather",
            [heads.outputs[0], passes.constant(model.graph, place)],
            "batch",
            "sequence",
            2,
            2,
            axis=3,
        )
        flat = plain(
            "Reshape", [picked.outputs[0], passes.constant(model.graph, [0, 0, 4])], "batch", "sequence", 4
        )
        end = plain("Tanh", [flat.outputs[0]], "batch", "sequence", 4) if bent and place == 1 else flat
        nodes += [picked, flat] if end is flat else [picked, flat, end]
        rows.append(end.outputs[0])
    attention = ir.node("GroupQueryAttention", rows, domain="com.microsoft")
    model.graph.extend([*nodes, attention])
    model.graph.outputs.append(attention.outputs[0])
    return model


def test_a_projection_head_by_head_is_rearranged():
    model = head_by_head()
    assert arrange_projections(model.graph, None) == 1
    passes.tidy(model)
    assert counted(model.graph) == {"gptport.Linear": 1, "com.microsoft.GroupQueryAttention": 1}
    stored = {"qkv.weight": torch.arange(12.0)[:, None].expand(12, 8), "qkv.bias": torch.arange(12.0)}
    weight_values.attach(model.graph, Tensors(stored), {})
    _, weight, bias = model.graph[0].inputs
    assert bias.const_value.numpy().tolist() == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]
    assert weight.const_value.numpy()[:, 0].tolist() == bias.const_value.numpy().tolist()


def test_a_projection_that_is_changed_on_its_way_stays():
    assert_left_alone(arrange_projections, head_by_head(bent=True))
