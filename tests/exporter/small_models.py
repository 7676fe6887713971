"""A small random model of any architecture: its configuration, with what makes a model large made small."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

if TYPE_CHECKING:
    from pathlib import Path

LAYERS = 4

# Set where a configuration has the field, under whichever name. The window is shorter than the texts of the verification.
_SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "emb_dim", "embedding_size"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "dff"), 192),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "intermediate_size_mlp"), 192),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    **dict.fromkeys(("num_key_value_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "attention_head_dim"), 32),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 48),
    "qk_rope_head_dim": 16,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 384),
    "hidden_size_per_layer_input": 32,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 64),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("n_group", "num_expert_group"), 2),
    "topk_group": 1,
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers"), 1),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "floor_scale"), 8),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
    # What these are by default makes scores so large that rounding decides; no checkpoint has them so.
    "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0,
    "is_decoder": True,
}  # fmt: skip

_NOT_OF_LATENTS = ("head_dim",)
"""What a configuration with latent attention computes itself."""
_HALF_ROTARY = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
}
_SHARED_KV = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
"""The last two layers take the keys and values of the first two."""
_OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    # Its rotary base is read from there, where the configuration has none unless a checkpoint does.
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 2.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 2},
    },
    "dots1": {"n_shared_experts": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "gemma4_text": _SHARED_KV,
    "gemma4_unified_text": _SHARED_KV,
    "gpt_neox": _HALF_ROTARY,
    "stablelm": _HALF_ROTARY,
    "youtu": {"pad_token_id": None},  # transformers sets its row of the embedding to zero
}


def config(name: str) -> PretrainedConfig:
    """The small configuration of an architecture."""
    kind = CONFIG_MAPPING[name]
    made: PretrainedConfig = kind(**{**_small(kind()), **_OF_ITS_OWN.get(name, {})})
    return made


def _small(defaults: PretrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that are to be other than by default, those of the configurations in it as well."""
    fields = vars(defaults)
    wanted = {
        key: value
        for key, value in _SMALL.items()
        if key not in _NOT_OF_LATENTS or "kv_lora_rank" not in fields
    }
    known = {*fields, *getattr(defaults, "attribute_map", {})}
    layers = getattr(defaults, "num_hidden_layers", None)
    of_layers = {
        key: value[:LAYERS]
        for key, value in fields.items()
        if isinstance(value, list) and len(value) == layers and not key.startswith("_")
    }
    inner = {
        key: {**value.to_dict(), **_small(value)}
        for key, value in fields.items()
        if isinstance(value, PretrainedConfig)
    }
    of_latents = {"num_key_value_heads": 4} if "kv_lora_rank" in fields else {}
    return {
        **{key: value for key, value in (wanted | of_latents).items() if key in known},
        **of_layers,
        **inner,
    }


def write_model(name: str, folder: Path, tokenizer: Path) -> None:
    """A checkpoint with random weights, wide enough that every part of the model tells in its logits."""
    small = config(name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small, dtype=torch.float32)
    for tensor in (*model.parameters(), *_stored_buffers(model)):
        if tensor.ndim > 1:
            torch.nn.init.normal_(tensor, std=0.15)
        else:
            torch.nn.init.normal_(tensor, 1.0, 0.1)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)


def _stored_buffers(model: torch.nn.Module) -> list[torch.Tensor]:
    """What a checkpoint has beside the parameters: it may have been trained too."""
    stored = model.state_dict(keep_vars=True)
    return [buffer for name, buffer in model.named_buffers() if name in stored and buffer.is_floating_point()]
