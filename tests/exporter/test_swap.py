"""Modules are recognised by the numbers they give, whatever they are called; what is not recognised is never mistaken."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    LlamaConfig,
    MambaConfig,
)
from transformers.activations import ACT2FN
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.phimoe.modeling_phimoe import PhimoeTopKRouter
from transformers.pytorch_utils import Conv1D

from gptport import recording, rotary, swap
from gptport.checkpoint import open_checkpoint
from gptport.errors import UnsupportedModel
from gptport.spec import ModelSpec
from gptport.trace import meta_model, trace
from small_models import config


class NormOfAnotherName(nn.Module):
    """An RMS norm that nobody could know by its name."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.variance_epsilon = 1e-6

    def forward(self, x):
        return self.weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.variance_epsilon)


class NormWithoutMean(nn.Module):
    """Looks like a layer norm, and divides by the largest value."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = 1e-6

    def forward(self, x):
        return self.weight * x / (x.abs().amax(-1, keepdim=True) + self.eps)


def on_meta(make):
    with torch.device("meta"):
        return make()


def recorded(make, *shape):
    """The calls that a module makes when it is traced."""
    model = nn.Sequential(on_meta(make))
    recorder, x = recording.Recorder(), torch.empty(shape, device="meta")
    with (
        swap.swapped(model, nn.Sequential(on_meta(make))),
        torch.no_grad(),
        recorder.recording_of(model) as calls,
    ):
        model(x)
    return calls.calls


def the_only_call(make, *shape):
    (call,) = recorded(make, *shape)
    return call.operator, dict(call.keywords)


@pytest.mark.parametrize(
    ("make", "kind", "epsilon", "offset"),
    [
        (lambda: LlamaRMSNorm(8, eps=1e-5), "rms", 1e-5, 0.0),
        (lambda: NormOfAnotherName(8), "rms", 1e-6, 0.0),
        (lambda: nn.LayerNorm(8, eps=1e-3), "layer", 1e-3, 0.0),
        (lambda: nn.LayerNorm(8, bias=False), "layer", 1e-5, 0.0),
        (lambda: GemmaRMSNorm(8), "rms", 1e-6, 1.0),
        (lambda: NemotronLayerNorm1P(8), "layer", 1e-5, 1.0),
    ],
    ids=[
        "LlamaRMSNorm",
        "another name",
        "LayerNorm",
        "LayerNorm without bias",
        "(1 + w) of Gemma",
        "Nemotron",
    ],
)
def test_a_norm_is_recognised(make, kind, epsilon, offset):
    expected = {"kind": kind, "epsilon": epsilon, "offset": offset}
    assert the_only_call(make, 2, 3, 8) == ("gptport::Norm", expected)


def test_what_only_looks_like_a_norm_is_traced_as_it_is():
    operators = [call.operator for call in recorded(lambda: NormWithoutMean(8), 2, 3, 8)]
    assert "gptport::Norm" not in operators
    assert operators


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("silu", "silu"),
        ("swish", "silu"),
        ("relu", "relu"),
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("quick_gelu", "gelu_quick"),
    ],
)
def test_an_activation_is_recognised(name, kind):
    assert the_only_call(lambda: ACT2FN[name], 2, 8) == ("gptport::Activation", {"kind": kind})


@pytest.mark.parametrize("name", ["relu2", "relu6", "gelu_10", "mish", "leaky_relu", "tanh"])
def test_another_activation_is_traced_as_it_is(name):
    assert "gptport::Activation" not in [call.operator for call in recorded(lambda: ACT2FN[name], 2, 8)]


@pytest.mark.parametrize(
    ("make", "transposed", "inputs"),
    [
        (lambda: nn.Linear(8, 4), 0, 3),
        (lambda: nn.Linear(8, 4, bias=False), 0, 2),
        (lambda: Conv1D(4, 8), 1, 3),
    ],
    ids=["Linear", "Linear without bias", "Conv1D"],
)
def test_a_projection_keeps_the_layout_of_its_weight(make, transposed, inputs):
    (call,) = recorded(make, 2, 3, 8)
    assert (call.operator, call.keywords) == ("gptport::Linear", {"transposed": transposed})
    assert len(call.arguments) == inputs


def test_modules_are_themselves_again_after_a_trace():
    model, meta = (nn.Sequential(on_meta(lambda: nn.Linear(8, 4))) for _ in range(2))
    with swap.swapped(model, meta):
        assert "forward" in vars(model[0])
    assert "forward" not in vars(model[0])


def rotating_neighbours(query, key, cos, sin):
    def rotate(x):
        return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)

    return query * cos + rotate(query) * sin, key * cos + rotate(key) * sin


def test_it_is_told_apart_which_axes_are_rotated_together():
    assert rotary.way(apply_rotary_pos_emb) == {"interleaved": False, "backwards": False, "heads_last": False}
    assert rotary.way(rotating_neighbours) == {"interleaved": True, "backwards": False, "heads_last": False}


def test_it_is_told_which_way_they_are_rotated():
    def backwards(query, key, cos, sin):
        return apply_rotary_pos_emb(query, key, cos, -sin)

    assert rotary.way(backwards) == {"interleaved": False, "backwards": True, "heads_last": False}


def test_another_rotation_is_refused():
    def twice(query, key, cos, sin):
        return apply_rotary_pos_emb(*apply_rotary_pos_emb(query, key, cos, sin), cos, sin)

    with pytest.raises(UnsupportedModel, match="rotates neither halves nor neighbours"):
        rotary.way(twice)


def tiny(config_type, **changes):
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 384,
        "max_position_embeddings": 64,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return config_type(**{**shape, **changes})


def scaled(rope_type):
    parameters = {
        "dynamic": {"factor": 2.0},
        "longrope": {
            "factor": 2.0,
            "short_factor": [1.5] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 32,
        },
    }[rope_type]
    return tiny(LlamaConfig, rope_parameters={"rope_type": rope_type, "rope_theta": 10000.0, **parameters})


@pytest.mark.parametrize(("rope_type", "limit"), [("dynamic", 64), ("longrope", 32)])
def test_rotary_angles_that_change_with_the_length_are_taken_up_to_where_they_do(rope_type, limit):
    config = scaled(rope_type)
    cos, sin = rotary.tables(meta_model(config, 1, torch.float32), "model.rotary_emb", limit)
    real = LlamaRotaryEmbedding(config)
    for length in (1, limit):
        expected = real(torch.zeros(1), torch.arange(length)[None])
        assert torch.equal(cos[:length], expected[0][0, :, :8])
        assert torch.equal(sin[:length], expected[1][0, :, :8])
    with pytest.raises(
        UnsupportedModel, match=f"'{rope_type}'.*more than {limit} tokens; pass --max-length {limit}"
    ):
        rotary.tables(meta_model(config, 1, torch.float32), "model.rotary_emb", limit + 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig, r"changes a tensor in place \(aten::copy_\)"),
    ],
)
def test_an_architecture_that_is_not_understood_is_refused_with_the_reason(config, message):
    config = tiny(config)
    spec = ModelSpec.from_config(config, {})
    with pytest.raises(UnsupportedModel, match=message):
        trace(config, spec, 2, torch.float32)


def test_the_trace_of_a_llama_has_an_operator_for_every_module(llama):
    checkpoint = open_checkpoint(str(llama))
    graph = trace(checkpoint.config, checkpoint.spec, 2, torch.float32).model.graph
    ours = [node.op_type for node in graph if node.domain == "gptport"]
    assert {op: ours.count(op) for op in ours} == {
        "RotaryTable": 1,
        "Norm": 5,
        "Linear": 15,
        "Rotary": 4,
        "Attention": 2,
        "Activation": 2,
        "LastPosition": 1,
    }


def test_the_reference_functions_are_torchs():
    x = torch.linspace(-5, 5, 50)
    assert torch.equal(swap.ACTIVATIONS["gelu_tanh"](x), functional.gelu(x, approximate="tanh"))
    assert set(swap.ACTIVATIONS) == {"silu", "relu", "gelu", "gelu_tanh", "gelu_quick"}


@pytest.mark.parametrize(
    ("name", "where"), [("lfm2", "model.layers.0.conv"), ("qwen3_5_text", "model.layers.0.linear_attn")]
)
def test_a_layer_with_a_state_of_its_own_is_refused_by_name(name, where):
    made = config(name)
    with pytest.raises(UnsupportedModel, match=f"^{where} keeps a state of its own in the cache"):
        trace(made, ModelSpec.from_config(made, {}), 4, torch.float32)


def test_a_linear_layer_that_does_more_is_no_linear_layer():
    router = PhimoeTopKRouter(config("phimoe"))
    model = nn.ModuleDict({"router": router, "linear": nn.Linear(8, 8), "falcon": FalconLinear(8, 16)})
    assert swap._replacement("router", model["router"], model) is None
    assert swap._replacement("linear", model["linear"], model) is not None
    assert swap._replacement("falcon", model["falcon"], model) is not None
