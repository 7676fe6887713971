"""Swap the modules that matter for `gptport` operators while a model is traced.

A module is recognised by what it computes, not by its name: a norm is an RMS norm if it gives an RMS norm's numbers on a
random input. What is not recognised is traced as it is; what would then be wrong without notice is refused.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from . import operators
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
    """The tensors of one traced call that attention needs and that models don't hand through, and what it gives back."""

    seqlens_k: torch.Tensor
    past: list[tuple[torch.Tensor, torch.Tensor]]
    present: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


_calls: list[Call] = []


class PassThroughCache(Cache):
    """A cache that stores nothing: the attention operator reads and writes the cache itself."""

    def __init__(self) -> None:
        self.layers = []

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """The new keys and values, unchanged."""
        return key_states, value_states

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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface; see `ALL_ATTENTION_FUNCTIONS`."""
    given = [
        f"{name}={value!r}" for name, value in others.items() if value is not None and name not in _UNDERSTOOD
    ]
    if attention_mask is not None:
        given.append("an attention mask of its own")
    if given:
        raise UnsupportedModel(
            f"the attention of {type(module).__name__} takes {', '.join(given)}, which gptport cannot lower yet"
        )
    call, layer = _calls[-1], int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, *present = operators.attention(query, key, value, *call.past[layer], call.seqlens_k, scale)
    call.present[layer] = (present[0], present[1])
    return out, None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda *_, **__: None)


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
    with ExitStack() as stack:
        for path, module in model.named_modules():
            forward = _replacement(path, module, meta.get_submodule(path))
            if forward is not None:
                stack.enter_context(patch.object(module, "forward", forward))
        source = sys.modules[type(model).__module__]
        if hasattr(source, "apply_rotary_pos_emb"):
            _check_rotary(source.apply_rotary_pos_emb)
            stack.enter_context(patch.object(source, "apply_rotary_pos_emb", _apply_rotary))
        yield


def _replacement(path: str, module: nn.Module, meta: nn.Module) -> Callable[..., Any] | None:
    if isinstance(module, nn.Linear):
        return lambda x: operators.linear(x, module.weight, module.bias, transposed=False)
    if isinstance(module, Conv1D):
        return lambda x: operators.linear(x, module.weight, module.bias, transposed=True)
    if is_rotary(module):
        return _rotary_embedding(path, real_rotary(meta))
    if any(True for _ in module.children()):
        return None
    return _norm(module, meta) or _activation(module, meta)


def is_rotary(module: nn.Module) -> bool:
    """Whether the module makes rotary angles: it has inverse frequencies."""
    return isinstance(getattr(module, "inv_freq", None), torch.Tensor)


def real_rotary(module: nn.Module) -> nn.Module:
    """A rotary module on the CPU, with the angles that its configuration asks for."""
    make: Any = type(module)
    real: nn.Module = make(module.config)
    return real


def _rotary_embedding(path: str, real: nn.Module) -> Callable[..., Any]:
    rope_type = getattr(real, "rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise UnsupportedModel(
            f"rotary scaling {rope_type!r} of {path} changes with the length of the sequence"
        )
    inverse_frequencies: Any = real.inv_freq
    head_dim = 2 * inverse_frequencies.shape[0]

    def forward(x: torch.Tensor, position_ids: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        table = operators.rotary_table(x, position_ids, path, head_dim)
        return table, table

    return forward


def _apply_rotary(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    assert cos is sin, "a swapped rotary module returns its table twice"
    return operators.rotary(query, cos), operators.rotary(key, cos)


def _check_rotary(apply: Callable[..., Any]) -> None:
    """The model's own function must rotate as `operators.rotary` says, over the whole head."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 8, generator=generator) for _ in range(2))
    angles = torch.randn(1, 3, 4, generator=generator).repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    expected = [x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin for x in (query, key)]
    got = apply(query, key, cos, sin)
    if not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True)):
        raise UnsupportedModel(f"{apply.__module__}.apply_rotary_pos_emb does not rotate by halves")


def _norm(module: nn.Module, meta: nn.Module) -> Callable[..., Any] | None:
    weight = getattr(module, "weight", None)
    epsilon = next(
        (float(v) for k, v in vars(module).items() if k in ("eps", "variance_epsilon", "epsilon")), None
    )
    if epsilon is None or not isinstance(weight, nn.Parameter) or weight.ndim != 1:
        return None
    x = torch.randn(3, weight.shape[0], generator=torch.Generator().manual_seed(0))
    real: Any = meta.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.uniform_(0.5, 1.5)
        got = real(x)
        references = {
            "rms": functional.rms_norm(x, weight.shape, real.weight, epsilon),
            "layer": functional.layer_norm(
                x, weight.shape, real.weight, getattr(real, "bias", None), epsilon
            ),
        }
    for kind, expected in references.items():
        if torch.allclose(got, expected, atol=1e-5):
            traced: Any = (
                module  # its parameters are looked up when it is called: tracing puts others in their place
            )
            return lambda x: operators.norm(
                x, traced.weight, getattr(traced, "bias", None), kind=kind, epsilon=epsilon
            )
    return None


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
