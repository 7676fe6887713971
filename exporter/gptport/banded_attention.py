"""Attention that a model computes itself, in a method `_attn(query, key, value, attention_mask)`, with a mask in a buffer.

What the method computes is found out by calling it: its second result, the weights, tells which keys a query sees and by which
scale the scores were multiplied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import own_attention, recording, swap
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from transformers import PretrainedConfig

METHOD = "_attn"


def replacement(path: str, module: nn.Module, buffered: Callable[[], nn.Module]) -> Callable[..., Any] | None:
    """What stands for the method while a model is traced; None if the module has no such method or mask.

    Args:
        path: of the module.
        module: the one that is traced.
        buffered: gives the model with its buffers in memory.
    """
    if not callable(getattr(module, METHOD, None)) or not any(
        b.ndim == 4 for b in module.buffers(recurse=False)
    ):
        return None

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        *_: Any,
    ) -> tuple[torch.Tensor, None]:
        call = swap.current()
        if not isinstance(key, own_attention.Marked):
            raise UnsupportedModel(
                f"{path} gives its keys and values to no cache, without which gptport cannot decode"
            )
        own_attention.window_of(mask)  # which the method's own mask is measured against below
        key, value = own_attention.unmarked(key), own_attention.unmarked(value)
        with recording.paused():
            scale, window = _scale_and_window(buffered().get_submodule(path), query.shape[-1])
        return swap.attend(call, call.layer, (query, key, value), scale, window).transpose(1, 2), None

    return attend


def _scale_and_window(real: Any, head_dim: int) -> tuple[float, int]:
    """The scale of the scores, and how many keys a query sees, itself included; 0 for all before it.

    Raises:
        UnsupportedModel: the method computes something else.
    """
    longest = max([0, *(int(buffer.shape[-1]) for buffer in real.buffers(recurse=False) if buffer.ndim == 4)])
    length = longest or 8
    query, key = (
        torch.randn(1, 1, length, head_dim, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
    )
    with torch.no_grad(), torch.device("cpu"):
        weights = real._attn(query, key, torch.zeros_like(key), None)[1][0, 0]
    seen, scores = weights > 0, (query @ key.transpose(-1, -2))[0, 0]
    # Differences of log-weights are differences of scores, scaled.
    pair = weights[-1].topk(2).indices
    scale = float(weights[-1, pair].log().diff() / scores[-1, pair].diff())
    window = int(seen[-1].sum()) if seen[-1].sum() < length else 0
    back = torch.arange(length)[:, None] - torch.arange(length)
    expected = (scores * scale).masked_fill((back < 0) | (back >= (window or length)), float("-inf"))
    masked_outside = (scores * scale).softmax(-1)  # the mask, which is causal, comes from the model then
    if not any(torch.allclose(weights, each, atol=1e-5) for each in (expected.softmax(-1), masked_outside)):
        raise UnsupportedModel(f"{type(real).__name__}.{METHOD} is no causal attention that gptport knows")
    return scale, window


def with_buffers(config: PretrainedConfig) -> nn.Module:
    """The model without weights, but with its buffers."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with (
        own_attention.classes_known(config, swap.ATTENTION),
        init_empty_weights(include_buffers=False),
        torch.device("cpu"),
    ):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.eval()
