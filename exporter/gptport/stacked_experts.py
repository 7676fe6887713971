"""Experts whose matrices lie below each other, in three parameters [E·I,H] for all of them (DBRX): known by what they compute."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from . import operators

if TYPE_CHECKING:
    from collections.abc import Callable

_GATE_UP_DOWN = ("w1", "v1", "w2")
_EXPERTS, _WIDTH, _HIDDEN = 5, 6, 8  # of the small ones that are asked


def replacement(module: Any) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """What stands for their forward pass: hidden [B,S,H], chosen [T,k], their weights [T,k] → [B,S,H]; None for other modules."""
    if not _has_parts(module) or not _computes_it(module):
        return None

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        parameters = [getattr(module.mlp, name) for name in _GATE_UP_DOWN]
        given = operators.experts(
            [tokens, chosen, weights, *parameters],
            transposed=False,
            interleaved=False,
            below=module.num_experts,
        )
        return given.reshape(hidden.shape)

    return forward


def _has_parts(module: Any) -> bool:
    mlp = getattr(module, "mlp", None)
    sizes = all(hasattr(module, name) for name in ("num_experts", "ffn_hidden_size", "hidden_size"))
    return isinstance(mlp, nn.Module) and sizes and dict(mlp.named_parameters()).keys() == set(_GATE_UP_DOWN)


def _computes_it(module: Any) -> bool:
    """Whether a small copy gives the numbers of SwiGLU."""
    generator = torch.Generator().manual_seed(0)
    small, mlp = copy.copy(module), copy.copy(module.mlp)
    rows = {name: torch.randn(_EXPERTS * _WIDTH, _HIDDEN, generator=generator) for name in _GATE_UP_DOWN}
    vars(mlp)["_parameters"] = {name: nn.Parameter(each) for name, each in rows.items()}
    vars(small)["_modules"] = {"mlp": mlp}
    small.num_experts, small.ffn_hidden_size, small.hidden_size = _EXPERTS, _WIDTH, _HIDDEN
    x = torch.randn(1, 7, _HIDDEN, generator=generator)
    chosen = torch.rand(7, _EXPERTS, generator=generator).topk(2).indices
    weights = torch.rand(7, 2, generator=generator)
    with torch.no_grad(), torch.device("cpu"):
        try:
            got = small(x, chosen, weights)
        except Exception:
            return False
        gate, up, down = (rows[name].view(_EXPERTS, _WIDTH, _HIDDEN)[chosen] for name in _GATE_UP_DOWN)
        inner = functional.silu(gate @ x[0, :, None, :, None]) * (up @ x[0, :, None, :, None])
        expected = ((down.mT @ inner)[..., 0] * weights[..., None]).sum(1)
    return torch.allclose(got, expected[None], rtol=1e-4, atol=1e-4)
