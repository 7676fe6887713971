"""Llama 4: chunks, experts that are given scaled tokens, heads that come last where it rotates; known by what they compute."""

from __future__ import annotations

import onnx
import pytest
import torch
from transformers import masking_utils
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe, apply_rotary_emb

import architectures
from gptport import masks, recording, rotary, scaled_experts
from gptport.errors import UnsupportedModel
from small_models import config


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(recording, "_active", [recording.Recorder()])


def test_it_is_exported_exactly(tmp_path, gpt2):
    row = architectures.row(
        "llama4_text", tmp_path, gpt2
    )  # chunks of 8 and a temperature that rises every 8, of 65 tokens
    assert row.split("|")[2].strip() == "exact"
    assert "4 fuse_experts" in row


def test_a_graph_no_longer_than_a_chunk_has_no_mask_for_it(tmp_path, gpt2, monkeypatch):
    monkeypatch.setattr(architectures, "LENGTH", 8)
    assert "| exact |" in architectures.row("llama4_text", tmp_path, gpt2)
    graph = onnx.load(next(tmp_path.rglob("llama4-text/1/model.onnx")), load_external_data=False).graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attention) == 4
    assert all(len(node.input) < 11 or not node.input[10] for node in attention)


@pytest.mark.usefixtures("recorder")
def test_chunks_are_told_from_other_masks():
    none = torch.zeros(1, dtype=torch.int64)
    chunked = masking_utils.chunked_causal_mask_function(8, none)
    assert masks._is_chunked(chunked, 8)
    assert not masks._is_chunked(chunked, 16)
    assert not masks._is_chunked(masking_utils.chunked_causal_mask_function(8, none + 1), 8)
    assert not masks._is_chunked(masking_utils.chunked_overlay(8, none), 8)
    assert not masks._is_chunked(masking_utils.sliding_window_causal_mask_function(8), 8)
    assert not masks._is_chunked(masking_utils.causal_mask_function, 8)


@pytest.mark.usefixtures("recorder")
def test_chunks_that_begin_elsewhere_are_refused():
    with (
        masks.chunks_without_padding(),
        pytest.raises(UnsupportedModel, match="begin elsewhere than at position 0"),
    ):
        masking_utils.chunked_causal_mask_function(8, torch.ones(1))


class WeighsWhatExpertsGive(Llama4TextMoe):
    """The same modules, with another way to use them."""

    def forward(self, hidden_states):
        tokens = hidden_states.reshape(-1, self.hidden_dim)
        scores, logits = self.router(tokens)
        given = self.experts(tokens.repeat(self.num_experts, 1)).view(self.num_experts, *tokens.shape)
        return self.shared_expert(tokens) + (given * scores.T[..., None]).sum(0), logits


@pytest.mark.parametrize(("kind", "known"), [(Llama4TextMoe, True), (WeighsWhatExpertsGive, False)])
def test_experts_are_known_by_what_the_mixture_computes(kind, known):
    with torch.device("meta"):
        mixture = kind(config("llama4_text"))
    assert (scaled_experts.replacement(mixture) is not None) == known


def test_heads_may_come_last():
    assert rotary.way(apply_rotary_emb) == {"interleaved": True, "backwards": False, "heads_last": True}
