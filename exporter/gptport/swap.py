"""Swap the modules that matter for `gptport` operators while a model is traced.

A module is recognised by what it computes, not by its name: a norm is an RMS norm if it gives an RMS norm's numbers on a
random input. What is not recognised is traced as it is; what would then be wrong without notice is refused.
"""

from __future__ import annotations

import copy
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from . import (
    banded_attention,
    experts,
    latent_attention,
    masks,
    norms,
    operators,
    own_attention,
    positions,
    recording,
    rotary,
    scaled_experts,
    stacked_experts,
)
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATTENTION = "gptport"
"""The name under which the attention function is registered with transformers."""

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
}

# What the attention of each architecture passes beside these would change its result.
_UNDERSTOOD = {
    "attention_mask",
    "dropout",
    "scaling",
    "is_causal",
    "position_ids",
    "use_cache",
    "output_attentions",
    "cache_position",
}


@dataclass
class Call:
    """What the attention of one traced call needs and models don't hand through, and what it gives back.

    Attributes:
        seqlens_k, position_ids: as in the graph.
        length, dtype: of a cache: the tokens that it has room for, and its numbers.
        past: keys and values of each layer before it, as far as it was asked for.
        layer: whose keys and values were given to the cache last.
        table: the rotary angles of a model that looks them up in a buffer.
        present: layer → its keys and values afterwards.
    """

    seqlens_k: torch.Tensor
    position_ids: torch.Tensor
    length: int
    dtype: torch.dtype
    past: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    layer: int = -1
    table: torch.Tensor | None = None
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def cache_of(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The past [B,K,L,D] of a layer, whose shape is that of its new keys and values [B,K,S,D]."""
        if layer not in self.past:
            with recording.paused():
                batch, heads, _, width = key.shape
                shape = batch, heads, self.length, width
                self.past[layer] = (
                    key.new_empty(shape, dtype=self.dtype),
                    value.new_empty(shape, dtype=self.dtype),
                )
        return self.past[layer]


_calls: list[Call] = []


class _NoLayers(list[Any]):
    """What a model looks into that keeps a state of its own in the cache: refused by name."""

    def __getitem__(self, index: Any) -> Any:
        raise UnsupportedModel(
            f"{recording.scope() or 'the model'} keeps a state of its own in the cache, beside keys and values, as "
            "convolutions and recurrences do; gptport cannot export that yet"
        )


class PassThroughCache(Cache):
    """A cache that stores nothing: the attention operator reads and writes the cache itself."""

    def __init__(self) -> None:
        self.layers = _NoLayers()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> Any:
        """The new keys and values, unchanged; marked if they are what attention takes, and no latents."""
        call = _calls[-1]
        call.layer = layer_idx
        if key_states.shape[-1] != value_states.shape[-1] and key_states.shape[1] == 1:
            return key_states, value_states
        kinds = (("key", key_states), ("value", value_states))
        return tuple(own_attention.Marked.of(each, own_attention.Mark(kind, each)) for kind, each in kinds)

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Positions are an input of the graph; masks are the operator's."""
        return 0


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; see `ALL_ATTENTION_FUNCTIONS`."""
    call, layer = _calls[-1], int(module.layer_idx)  # type: ignore[arg-type]
    chunk = own_attention.chunk_of(attention_mask)
    window = 0 if chunk else own_attention.window_of(attention_mask)
    given = [
        f"{name}={value!r}"
        for name, value in others.items()
        if name not in _UNDERSTOOD and value is not None and value is not False
    ]
    if sliding_window is not None and sliding_window != window:
        given.append(f"a window of {sliding_window} where its mask has {window or 'none'}")
    if given:
        raise UnsupportedModel(
            f"the attention of {type(module).__name__} takes {', '.join(given)}, which gptport cannot lower yet"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key, value = own_attention.unmarked(key), own_attention.unmarked(value)
    new = (query, key, latent_attention.padded(value, key.shape[-1]))
    out = attend(call, layer, new, scale, window, softcap or 0.0, sink=s_aux, chunk=chunk)
    return out[..., : value.shape[-1]], None


def attend(
    call: Call,
    layer: int,
    new: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
    window: int,
    softcap: float = 0.0,
    slopes: tuple[float, ...] = (),
    sink: torch.Tensor | None = None,
    chunk: int = 0,
) -> torch.Tensor:
    """The attention operator on the new queries, keys and values [B,H,S,D] of a layer and its cache; [B,S,H,D]."""
    _, key, value = new
    if key.shape != value.shape:
        raise UnsupportedModel(
            f"layer {layer} has keys of {key.shape[1]} heads of {key.shape[3]}, but values of {value.shape[1]} of "
            f"{value.shape[3]}; gptport has one shape of KV cache for both"
        )
    if layer in call.present:
        raise UnsupportedModel(
            f"layer {layer} attends twice with one cache of keys and values, which gptport cannot lower yet"
        )
    out, *present = operators.attention(
        *new,
        *call.cache_of(layer, key, value),
        call.seqlens_k,
        scale=scale,
        window=window,
        softcap=softcap,
        slopes=slopes,
        sink=sink,
        chunk=chunk,
    )
    call.present[layer] = (present[0], present[1])
    return out


def current() -> Call:
    """The call that is traced."""
    return _calls[-1]


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, masks.mask)


@contextmanager
def calling(call: Call) -> Iterator[Call]:
    """The call whose tensors the attention operators take, for the duration."""
    _calls.append(call)
    try:
        yield call
    finally:
        _calls.pop()


@contextmanager
def swapped(model: nn.Module, meta: nn.Module) -> Iterator[None]:
    """Give `model`, which is traced, operators in place of its modules.

    Args:
        model: the model under trace; its parameters are fake.
        meta: the same model without memory, whose modules are made real one by one and asked what they compute.
    """
    buffered = cache(lambda: banded_attention.with_buffers(meta.config))  # type: ignore[arg-type]
    with ExitStack() as stack:
        for path, module in model.named_modules():
            forward = _replacement(path, module, meta)
            if forward is not None:
                stack.enter_context(patch.object(module, "forward", forward))
            banded = banded_attention.replacement(path, module, buffered)
            if banded is not None:
                stack.enter_context(patch.object(module, banded_attention.METHOD, banded))
            expand = latent_attention.replacement(path, module, meta)
            if expand is not None:
                stack.enter_context(patch.object(module, latent_attention.METHOD, expand))
            counting = positions.replacements(path, module, lambda: current().position_ids)
            for name, count in counting.items():
                stack.enter_context(patch.object(module, name, count))
        stack.enter_context(masks.chunks_without_padding())
        stack.enter_context(own_attention.alibi_marked(model))
        source = sys.modules[type(model).__module__]
        for name in rotary.FUNCTIONS:
            if hasattr(source, name):
                stack.enter_context(patch.object(source, name, _rotation(getattr(source, name))))
        yield


def _rotation(apply: Callable[..., Any]) -> Callable[..., Any]:
    if rotary.takes_one_tensor(apply):
        rotary.check_neighbours(apply)
        return lambda x, *_: rotary.looked_up(x, current().table)
    if rotary.takes_one_of_heads_last(apply):
        return rotary.heads_last
    return rotary.application(**rotary.way(apply))


def _replacement(path: str, module: nn.Module, model: nn.Module) -> Callable[..., Any] | None:
    if isinstance(module, nn.Linear) and _is_linear(module):
        return lambda x: operators.linear(x, module.weight, module.bias, transposed=False)
    if isinstance(module, Conv1D) and type(module).forward is Conv1D.forward:
        return lambda x: operators.linear(x, module.weight, module.bias, transposed=True)
    if experts.are_experts(module):
        return experts.replacement(path, module, model.get_submodule(path))
    mixture = scaled_experts.replacement(module) or stacked_experts.replacement(module)
    if mixture is not None:
        return mixture
    if rotary.is_rotary(module):
        return rotary.embedding(path, model)
    if any(True for _ in module.children()):
        return None
    meta = model.get_submodule(path)
    return norms.replacement(module, meta) or _activation(module, meta)


def _is_linear(module: nn.Linear) -> bool:
    """Whether it does no more than its class is for: of a class derived from that, a small one is asked."""
    if type(module).forward is nn.Linear.forward:
        return True
    generator, small = torch.Generator().manual_seed(0), copy.copy(module)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((1, 3, 8), (4, 8), (4,)))
    own = {"weight": weight, "bias": None if module.bias is None else bias}
    small.__dict__["_parameters"] = {
        name: None if each is None else nn.Parameter(each) for name, each in own.items()
    }
    with torch.no_grad():
        try:
            got = small(x)
        except Exception:
            return False
    return isinstance(got, torch.Tensor) and torch.allclose(
        got, functional.linear(x, weight, own["bias"]), atol=1e-5
    )


def _activation(module: nn.Module, meta: nn.Module) -> Callable[..., Any] | None:
    if any(True for _ in module.parameters()) or isinstance(module, nn.Dropout | nn.Identity):
        return None
    # Near zero, where the kinds of GELU differ, and far out, where some activations clip.
    x = torch.cat([torch.linspace(-4, 4, 101), torch.linspace(-64, 64, 33)])
    try:
        got = meta(x)
    except Exception:
        return None
    for kind, reference in ACTIVATIONS.items():
        if isinstance(got, torch.Tensor) and torch.allclose(got, reference(x), atol=1e-6):
            return lambda x: operators.activation(x, kind)
    return None
