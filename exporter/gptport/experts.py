"""Experts: a mixture whose gated layers are stored together, found by how transformers marks them, known by its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from . import operators
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def are_experts(module: nn.Module) -> bool:
    """Whether it is what transformers' `use_experts_implementation` marks."""
    return all(
        hasattr(module, name) for name in ("is_concatenated", "is_transposed", "has_gate", "gate_up_proj")
    )


def replacement(path: str, module: Any, meta: Any) -> Callable[..., torch.Tensor]:
    """What stands for the forward pass of experts: hidden [T,H], chosen [T,k], their weights [T,k] → [T,H].

    Raises:
        UnsupportedModel: they compute something that the operator cannot say.
    """
    if not module.has_gate or getattr(module, "has_post_expert_norm", False):
        raise UnsupportedModel(
            f"{path} are experts without a gate, or with a norm, which gptport cannot lower yet"
        )
    alpha, beta, limit = _gate(path, meta)

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        parameters = [module.gate_up_proj, module.down_proj]
        biases = [module.gate_up_proj_bias, module.down_proj_bias] if module.has_bias else []
        return operators.experts(
            [hidden, chosen, weights, *parameters, *biases],
            transposed=module.is_transposed,
            interleaved=not module.is_concatenated,
            alpha=alpha,
            beta=beta,
            limit=limit,
        )

    return forward


def _gate(path: str, meta: Any) -> tuple[float, float, float]:
    """Alpha, beta and limit of the gate; see `operators.experts`."""
    gate, up = 9 * torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(0))
    joined = torch.cat([gate, up], -1) if meta.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
    got = meta._apply_gate(joined)
    of_its_own = float(getattr(meta, "alpha", 1.0)), 1.0, float(getattr(meta, "limit", None) or 0.0)
    for alpha, beta, limit in ((1.0, 0.0, 0.0), of_its_own):
        first, second = (gate.clamp(max=limit), up.clamp(-limit, limit)) if limit else (gate, up)
        expected = first * torch.sigmoid(alpha * first) * (second + beta)
        if torch.allclose(got, expected, atol=1e-4):
            return alpha, beta, limit
    raise UnsupportedModel(
        f"the experts {path} have a gate other than SwiGLU, which gptport cannot lower yet"
    )
