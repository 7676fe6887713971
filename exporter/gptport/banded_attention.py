"""Attention that a model computes itself, in a method `_attn(query, key, value, attention_mask)`, with a mask in a buffer.

What the method computes is found out by calling it: its second result, the weights, tells which keys a query sees and by which
scale the scores were multiplied. Keys come as [B,H,S,D], or as [B,H,D,S]. A model that has no cache (the first GPT) gets one: its
attention is over the tokens before as well, whose keys and values the operator keeps.
"""

from __future__ import annotations

import inspect
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
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None, *_: Any
    ) -> list[torch.Tensor | None]:
        call = swap.current()
        layer = call.layer if isinstance(key, own_attention.Marked) else _layer(path)
        given = own_attention.window_of(mask)
        turned = key.shape[-1] != query.shape[-1]
        key, value = own_attention.unmarked(key), own_attention.unmarked(value)
        with recording.paused():
            real = buffered().get_submodule(path)
            scale, own = _scale_and_window(real, query.shape[-1], turned=turned, masked=mask is not None)
        window = min((each for each in (given, own) if each), default=0)
        new = (query, key.transpose(-1, -2) if turned else key, value)
        return [swap.attend(call, layer, new, scale, window).transpose(1, 2), None]

    return attend


def _layer(path: str) -> int:
    """Which layer a module is of that no cache tells it: the only number in its path."""
    numbers = [int(each) for each in path.split(".") if each.isdecimal()]
    if len(numbers) != 1:
        raise UnsupportedModel(
            f"{path} gives its keys and values to no cache, and its path does not say of which layer they are"
        )
    return numbers[0]


def _scale_and_window(real: Any, head_dim: int, *, turned: bool, masked: bool) -> tuple[float, int]:
    """The scale of the scores, and how many keys a query sees, itself included; 0 for all before it.

    Args:
        real: the module, with its buffers in memory.
        head_dim: width of a head.
        turned: its keys are [B,H,D,S].
        masked: the model gives it a causal mask; it need not have one of its own.

    Raises:
        UnsupportedModel: the method computes something else.
    """
    longest = max([0, *(int(buffer.shape[-1]) for buffer in real.buffers(recurse=False) if buffer.ndim == 4)])
    length = longest or 8
    query, key, value = (
        torch.randn(1, 1, length, head_dim, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    # Those that give weights only when they are asked to have that for their last argument.
    asked = [True] if "output_attentions" in inspect.signature(real._attn).parameters else []
    with torch.no_grad(), torch.device("cpu"):
        given = key.transpose(-1, -2) if turned else key
        out, found = real._attn(query, given, value, None, *asked)[:2]
    weights = found[0, 0]
    seen, scores = weights > 0, (query @ key.transpose(-1, -2))[0, 0]
    # Differences of log-weights are differences of scores, scaled.
    pair = weights[-1].topk(2).indices
    scale = float(weights[-1, pair].log().diff() / scores[-1, pair].diff())
    window = int(seen[-1].sum()) if seen[-1].sum() < length else 0
    back = torch.arange(length)[:, None] - torch.arange(length)
    expected = (scores * scale).masked_fill((back < 0) | (back >= (window or length)), float("-inf"))
    references = [expected.softmax(-1), *([(scores * scale).softmax(-1)] if masked else [])]
    known = any(torch.allclose(weights, each, atol=1e-5) for each in references)
    if not known or not torch.allclose(out[0, 0], weights @ value[0, 0], atol=1e-5):
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
