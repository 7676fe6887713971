"""The operators that a traced GPT is written in: domain `gptport`, lowered to a dialect's operators before anything is saved.

Tracing swaps the modules that matter for these, so that fusions work on what a module means and not on a pattern of
arithmetic. Everything else of a model (residual additions, embeddings, soft caps, scales) is traced as it is.

| operator | inputs | outputs | attributes |
|---|---|---|---|
| Attention | q [B,H,S,D], k [B,K,S,D], v, past_key [B,K,L,D], past_value, seqlens_k [B] | out [B,S,H,D], present ×2 | scale |
| Rotary | x [B,H,S,D], table [B,S,D] | x rotated | |
| RotaryTable | x, position_ids [B,S] | table [B,S,D] in x's dtype | module: path of the module that makes the angles |
| Linear | x [...,in], weight, bias? | [...,out] | transposed: 0 for a weight [out,in], 1 for [in,out] |
| Norm | x, weight, bias? | normalized over the last axis | kind: `rms` or `layer`; epsilon |
| Activation | x | the same shape | kind: a key of `swap.ACTIVATIONS` |
| LastPosition | x [B,S,H], position_ids, seqlens_k | [B,H]: row b at the position seqlens_k[b] | |

The functions take and give tensors on the meta device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recording import emit

if TYPE_CHECKING:
    import torch

DOMAIN = "gptport"


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    seqlens_k: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention over the cache and the new tokens, which are written into the cache at their positions."""
    batch, heads, sequence, head_dim = query.shape
    inputs = [query, key, value, past_key, past_value, seqlens_k]
    out, present_key, present_value = emit(
        "gptport::Attention",
        inputs,
        {"scale": scale},
        (batch, sequence, heads, head_dim),
        past_key.shape,
        past_value.shape,
    )
    return out, present_key, present_value


def rotary(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the half-split kind: (x1, x2) → (x1·cos - x2·sin, x2·cos + x1·sin)."""
    return emit("gptport::Rotary", [x, table], {}, x.shape)[0]


def rotary_table(x: torch.Tensor, position_ids: torch.Tensor, module: str, head_dim: int) -> torch.Tensor:
    """Stands for the angles of `position_ids`; the values are computed from the real module when it is lowered."""
    return emit(
        "gptport::RotaryTable", [x, position_ids], {"module": module}, (*position_ids.shape, head_dim)
    )[0]


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, transposed: bool
) -> torch.Tensor:
    """x · weightᵀ + bias; x · weight + bias if `transposed`."""
    out_features = weight.shape[1 if transposed else 0]
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return emit("gptport::Linear", inputs, {"transposed": int(transposed)}, (*x.shape[:-1], out_features))[0]


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, kind: str, epsilon: float
) -> torch.Tensor:
    """RMS norm (`rms`) or layer norm (`layer`) over the last axis."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return emit("gptport::Norm", inputs, {"kind": kind, "epsilon": epsilon}, x.shape)[0]


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """An elementwise activation, by its name in `swap.ACTIVATIONS`."""
    return emit("gptport::Activation", [x], {"kind": kind}, x.shape)[0]


def last_position(x: torch.Tensor, position_ids: torch.Tensor, seqlens_k: torch.Tensor) -> torch.Tensor:
    """[B,S,H] → [B,H], for each row the position of its last valid token."""
    return emit("gptport::LastPosition", [x, position_ids, seqlens_k], {}, (x.shape[0], x.shape[2]))[0]
