"""Keys and values that a model makes of latents are cached as attention takes them, and compute the same."""

from __future__ import annotations

import pytest
import torch
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    apply_rotary_pos_emb_interleave,
)

from gptport import rotary
from gptport.errors import UnsupportedModel
from gptport.latent_attention import METHOD, _check, _expanded
from small_models import LAYERS, config, write_model


@pytest.fixture
def attention():
    with torch.device("meta"):
        return DeepseekV3Attention(config("deepseek_v3"), 0)


@pytest.mark.parametrize("name", ["minicpm3", "deepseek_v2"])
def test_it_is_exported_exactly(name, exported, checkpoints, gpt2):
    """MiniCPM3's layers add less the more of them there are: all are traced. DeepSeek-V2's angles are complex numbers."""
    write_model(name, checkpoints / name, gpt2)
    result = exported(checkpoints / name)
    assert result.lowering.traced_layers == LAYERS
    cache = result.manifest.kv_cache
    assert (cache.kv_heads, cache.head_dim) == (4, 32 + 16)
    assert result.parity.greedy_agreement == 1


def test_a_module_is_asked_whether_it_does_what_is_assumed(attention, monkeypatch):
    _check("a", attention)
    assert attention.kv_b_proj.weight.device.type == "meta"

    def other_way_round(latent, rotated):
        key, value = _expanded(attention, latent, rotated)
        return key.flip(-1), value

    monkeypatch.setattr(attention, METHOD, other_way_round)
    with pytest.raises(UnsupportedModel, match="a expands its latents in a way"):
        _check("a", attention)


def test_axes_may_come_out_in_another_order_if_they_do_of_query_and_key_alike():
    way = rotary.way(apply_rotary_pos_emb_interleave)
    assert way == {"interleaved": True, "backwards": False, "heads_last": False}

    def of_the_key_alone(query, key, cos, sin):
        rotated = apply_rotary_pos_emb_interleave(query, key, cos, sin)
        return rotated[0], rotated[1].flip(-1)

    with pytest.raises(UnsupportedModel, match="of_the_key_alone rotates neither"):
        rotary.way(of_the_key_alone)
