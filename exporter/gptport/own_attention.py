"""Attention that a model computes itself, in a method `_attn(query, key, value, attention_mask)`, outside of transformers' interface.

What the method computes is found out by calling it: its second result, the weights, tells which keys a query sees and by which
scale the scores were multiplied.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from . import recording, swap
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn
    from transformers import PretrainedConfig

METHOD = "_attn"


def replacement(path: str, module: nn.Module, buffered: Callable[[], nn.Module]) -> Callable[..., Any] | None:
    """What stands for the method while a model is traced; None if the module has no such method.

    Args:
        path: of the module.
        module: the one that is traced.
        buffered: gives the model with its buffers in memory.
    """
    if not callable(getattr(module, METHOD, None)):
        return None

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        call = swap.current()
        if mask is not None:
            raise UnsupportedModel(f"{type(module).__name__} has an attention mask of its own")
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

    with classes_known(config), init_empty_weights(include_buffers=False), torch.device("cpu"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.eval()


@contextmanager
def classes_known(config: PretrainedConfig) -> Iterator[None]:
    """Let a model that chooses the class of its attention by the implementation's name find one under ours."""
    from transformers import AutoModelForCausalLM

    architecture: Any = AutoModelForCausalLM._model_mapping[type(config)]
    source = sys.modules[architecture.__module__]
    with ExitStack() as stack:
        for name, classes in vars(source).items():
            if name.endswith("_ATTENTION_CLASSES") and isinstance(classes, dict):
                stack.enter_context(patch.dict(classes, {swap.ATTENTION: classes["eager"]}))
        yield
