"""The operators that a traced GPT is written in: domain `gptport`, lowered to a dialect's operators before anything is saved.

Tracing swaps the modules that matter for these, so that fusions work on what a module means and not on a pattern of
arithmetic. Everything else of a model (residual additions, embeddings, soft caps, scales) is traced as it is.

| operator | inputs | outputs | attributes |
|---|---|---|---|
| Attention | q [B,H,S,D], k [B,K,S,D], v, past_key [B,K,L,D], past_value, seqlens_k, sink? | [B,S,H,D], present ×2 | see below |
| Rotary | x [B,H,S,D], table [B,S,R] | x, its first R of D rotated | interleaved: pairs side by side; backwards |
| RotaryTable | x, position_ids [B,S] | table [B,S,D] in x's dtype | module: path of the module that makes the angles |
| Linear | x [...,in], weight, bias? | [...,out] | transposed: 0 for a weight [out,in], 1 for [in,out] |
| Norm | x, weight, bias? | normalized over the last axis | kind: `rms` or `layer`; epsilon; offset: added to the weight |
| Activation | x | the same shape | kind: a key of `swap.ACTIVATIONS` |
| Experts | x [T,H], chosen [T,k], weights [T,k], gate and up, down, biases? | [T,H] | see below |
| LastPosition | x [B,S,H], position_ids, seqlens_k | [B,H]: row b at the position seqlens_k[b]; more if the caller asks | |

The functions take and give tensors on the meta device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .recording import emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

DOMAIN = "gptport"


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_key: torch.Tensor,
    past_value: torch.Tensor,
    seqlens_k: torch.Tensor,
    *,
    scale: float,
    window: int,
    softcap: float,
    slopes: tuple[float, ...] = (),
    sink: torch.Tensor | None = None,
    chunk: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Causal attention over the cache and the new tokens, which are written into the cache at their positions.

    Args:
        query, key, value, past_key, past_value, seqlens_k: as in the table above; seqlens_k is [B].
        scale: of the products of query and key.
        window: the most tokens that one attends to, itself included; 0 for all.
        slopes: of ALiBi, one for each head: slope · j is added to the score of the key at position j; () for none.
        softcap: the scores s become softcap · tanh(s / softcap); 0 for none.
        sink: [H], a score of each head that takes its share of the probabilities and gives no value.
        chunk: tokens of a chunk, from position 0 on; one attends only to those of its own; 0 for all.
    """
    batch, heads, sequence, head_dim = query.shape
    inputs = [query, key, value, past_key, past_value, seqlens_k, *([] if sink is None else [sink])]
    attributes = {
        "scale": scale,
        "window": window,
        "softcap": softcap,
        **({"slopes": slopes} if slopes else {}),
        **({"chunk": chunk} if chunk else {}),
    }
    shapes = (batch, sequence, heads, head_dim), past_key.shape, past_value.shape
    out, present_key, present_value = emit("gptport::Attention", inputs, attributes, *shapes)
    return out, present_key, present_value


def rotary(
    x: torch.Tensor, table: torch.Tensor, *, interleaved: bool, backwards: bool = False
) -> torch.Tensor:
    """Rotary position embedding: (x1, x2) → (x1·cos - x2·sin, x2·cos + x1·sin) for the pairs of the axes that the table covers.

    A pair is (i, i + R/2) of the first R axes, or (2i, 2i + 1) if `interleaved`. `backwards` rotates by the negative angles.
    """
    attributes = {"interleaved": int(interleaved), **({"backwards": 1} if backwards else {})}
    return emit("gptport::Rotary", [x, table], attributes, x.shape)[0]


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
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    kind: str,
    epsilon: float,
    offset: float,
) -> torch.Tensor:
    """RMS norm (`rms`) or layer norm (`layer`) over the last axis, scaled by weight + offset."""
    inputs = [x, weight] if bias is None else [x, weight, bias]
    attributes = {"kind": kind, "epsilon": epsilon, "offset": offset}
    return emit("gptport::Norm", inputs, attributes, x.shape)[0]


def experts(
    inputs: Sequence[torch.Tensor],
    *,
    transposed: bool,
    interleaved: bool,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float = 0.0,
    below: int = 0,
) -> torch.Tensor:
    """The chosen experts of each token, weighed and added: down(gate · sigmoid(alpha · gate) · (up + beta)).

    Args:
        inputs: as in the table above; gate and up are one matrix [E,2·I,H], down is [E,H,I]; the biases [E,2·I] and [E,H].
        transposed: the last two axes of the matrices are the other way round.
        interleaved: gate and up alternate instead of following one another.
        alpha, beta: as above.
        limit: gate is at most this, up lies between this and its negative; 0 for no limit.
        below: how many experts there are, if their matrices lie below each other: gate, up and down are [E·I,H] each then.
    """
    attributes = {
        "transposed": int(transposed),
        "interleaved": int(interleaved),
        "alpha": alpha,
        "beta": beta,
        "limit": limit,
        **({"below": below} if below else {}),
    }
    return emit("gptport::Experts", inputs, attributes, inputs[0].shape)[0]


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """An elementwise activation, by its name in `swap.ACTIVATIONS`."""
    return emit("gptport::Activation", [x], {"kind": kind}, x.shape)[0]


def last_position(x: torch.Tensor, position_ids: torch.Tensor, seqlens_k: torch.Tensor) -> torch.Tensor:
    """[B,S,H] → [B,H], for each row the position of its last valid token."""
    return emit("gptport::LastPosition", [x, position_ids, seqlens_k], {}, (x.shape[0], x.shape[2]))[0]
