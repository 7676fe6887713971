"""Attention that a model writes out itself, with and without a cache, is known by what it computes."""

from __future__ import annotations

import pytest
import torch
from transformers.models.openai import modeling_openai

from gptport import banded_attention, recording
from gptport.errors import UnsupportedModel
from gptport.spec import ModelSpec
from gptport.trace import trace
from small_models import config


def test_attention_without_a_cache_gets_one():
    made = config("openai-gpt")
    graph = trace(made, ModelSpec.from_config(made, {}), 2, torch.float32).model.graph
    attention = [node for node in graph if node.op_type == "Attention"]
    assert [node.inputs[3].name for node in attention] == ["past_key_values.0.key", "past_key_values.1.key"]
    assert [node.attributes.get_float("scale") for node in attention] == pytest.approx([32**-0.5] * 2)


def test_attention_without_a_cache_that_sees_what_comes_after_is_refused(monkeypatch):
    def everything(_, query, key, value, *__):
        weights = (query @ key / value.shape[-1] ** 0.5).softmax(-1)
        return [weights @ value, weights]

    monkeypatch.setattr(modeling_openai.Attention, "_attn", everything)
    made = config("openai-gpt")
    with pytest.raises(
        UnsupportedModel, match=r"^Attention\._attn is no causal attention that gptport knows"
    ):
        trace(made, ModelSpec.from_config(made, {}), 2, torch.float32)


def test_attention_without_a_cache_needs_a_layer_in_its_path():
    assert banded_attention._layer("transformer.h.3.attn") == 3
    with pytest.raises(
        UnsupportedModel, match=r"^blocks\.1\.parts\.0\.attn gives its keys and values to no cache"
    ):
        banded_attention._layer("blocks.1.parts.0.attn")


def test_scores_with_a_bias_of_the_model_are_refused(monkeypatch):
    monkeypatch.setattr(recording, "is_zeros", lambda _: False)
    made = config("gpt_neox_japanese")
    with pytest.raises(UnsupportedModel, match="adds a bias of its own to its scores"):
        trace(made, ModelSpec.from_config(made, {}), 2, torch.float32)
