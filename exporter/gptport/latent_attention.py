"""Latent attention: keys and values of all heads are one small vector a token, which is expanded before attention.

transformers caches the small vectors. Here keys and values are cached as attention takes them, expanded once a token, which
computes the same; values are filled up with zeros to the width of keys, for one shape of cache. The method
`expand_kv(latent, rotated)` joins for each head the part of the key that its projection gives with the rotated part, which all
heads share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from . import recording
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

METHOD = "expand_kv"


def replacement(path: str, module: nn.Module, meta: nn.Module) -> Callable[..., Any] | None:
    """What stands for the method while a model is traced; None if the module has none.

    Args:
        path: of the module.
        module: the one that is traced.
        meta: the model without memory, whose module is asked what it computes.
    """
    if not callable(getattr(module, METHOD, None)):
        return None

    def expand(latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with recording.paused():
            _check(path, meta.get_submodule(path))
        return _expanded(module, latent, rotated)

    return expand


def _expanded(module: Any, latent: torch.Tensor, rotated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B,H,S,·] of latents [B,1,S,·] and the rotated part [B,1,S,·]."""
    widths = [module.qk_nope_head_dim, module.v_head_dim]
    batch, _, sequence, _ = latent.shape
    heads = module.kv_b_proj(latent).view(batch, sequence, -1, sum(widths)).transpose(1, 2)
    key, value = torch.split(heads, widths, dim=-1)
    return torch.cat([key, rotated.expand(-1, key.shape[1], -1, -1)], -1), value


def _check(path: str, module: Any) -> None:
    """UnsupportedModel if a module's own method does anything else."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad(), torch.device("cpu"):
        module.kv_b_proj.to_empty(device="cpu")
        for parameter in module.kv_b_proj.parameters():
            parameter.normal_(generator=generator)
        latent = torch.randn(1, 1, 3, module.kv_b_proj.in_features, generator=generator)
        rotated = torch.randn(1, 1, 3, module.qk_rope_head_dim, generator=generator)
        own, ours = getattr(module, METHOD)(latent, rotated), _expanded(module, latent, rotated)
        same = all(torch.equal(a, b) for a, b in zip(own, ours, strict=True))
        module.kv_b_proj.to(device="meta")
    if not same:
        raise UnsupportedModel(f"{path} expands its latents in a way that gptport does not know")


def padded(value: torch.Tensor, width: int) -> torch.Tensor:
    """Values [B,H,S,·], filled up with zeros to [B,H,S,width]."""
    missing = width - value.shape[-1]
    return functional.pad(value, (0, missing)) if missing else value
