"""A mixture whose router scales what its experts take, not what they give, and with an expert for every token (Llama 4).

    shared(x) + Σ expert(sigmoid(score) · x) of the chosen

transformers lets every expert run on every token, most of them scaled by 0. Here a token is given once to each of its experts.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from . import experts, operators

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZES = {"hidden_size": 8, "intermediate_size": 6, "num_local_experts": 5, "num_experts_per_tok": 2}


def replacement(module: Any) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None:
    """What stands for the forward pass of such a mixture, hidden [..., H] → [T,H] and scores [T,E]; None for any other module."""
    if not _has_parts(module) or not _computes_it(module):
        return None

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        scores = operators.linear(tokens, module.router.weight, module.router.bias, transposed=False)
        scaled, chosen = _scaled(tokens, scores, module.top_k)
        parameters = [module.experts.gate_up_proj, module.experts.down_proj]
        given = operators.experts(
            [scaled, chosen, torch.ones_like(chosen, dtype=scaled.dtype), *parameters],
            transposed=True,
            interleaved=False,
        )
        return module.shared_expert(tokens) + given.reshape(-1, module.top_k, tokens.shape[-1]).sum(1), scores

    return forward


def _has_parts(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("experts", "router", "shared_expert")]
    return (
        all(isinstance(each, nn.Module) for each in parts)
        and isinstance(module.router, nn.Linear)
        and not experts.are_experts(module.experts)
        and hasattr(module, "top_k")
        and all(hasattr(module.experts, name) for name in ("gate_up_proj", "down_proj"))
        and hasattr(module.shared_expert, "config")
    )


def _scaled(tokens: torch.Tensor, scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token once for each of its experts, scaled, [T·k,H], and that expert, [T·k,1]."""
    best, chosen = torch.topk(scores, count, dim=1)
    scales = torch.sigmoid(best.float()).to(tokens.dtype)
    return (tokens[:, None] * scales[..., None]).reshape(-1, tokens.shape[-1]), chosen.reshape(-1, 1)


def _computes_it(module: Any) -> bool:
    """Whether a small mixture of the same class gives the numbers of the definition."""
    config = copy.deepcopy(module.shared_expert.config)
    for name, size in _SIZES.items():
        setattr(config, name, size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        try:
            small = type(module)(config).float().eval()
            for parameter in small.parameters():
                parameter.normal_(generator=generator)
            x = torch.randn(7, _SIZES["hidden_size"], generator=generator)
            got, _ = small(x)
        except Exception:
            return False
        scaled, chosen = _scaled(x, functional.linear(x, small.router.weight, small.router.bias), small.top_k)
        gate, up = (scaled[:, None] @ small.experts.gate_up_proj[chosen[:, 0]]).chunk(2, -1)
        given = (functional.silu(gate) * up) @ small.experts.down_proj[chosen[:, 0]]
        expected = small.shared_expert(x) + given.reshape(-1, small.top_k, x.shape[-1]).sum(1)
    return torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
