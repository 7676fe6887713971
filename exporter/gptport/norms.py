"""Norms: known by the numbers that they give for a random input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from . import operators

if TYPE_CHECKING:
    from collections.abc import Callable


def replacement(module: nn.Module, meta: nn.Module) -> Callable[..., Any] | None:
    """What stands for the forward pass of a norm; None for any other module.

    Args:
        module: the one that is traced.
        meta: the same without memory, which is made real and asked what it computes.
    """
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
        try:
            got = real(x)
        except TypeError:  # it takes more than what it norms
            return None
        references = {}
        for offset in (0.0, 1.0):
            scale = real.weight + offset
            references["rms", offset] = functional.rms_norm(x, weight.shape, scale, epsilon)
            references["layer", offset] = functional.layer_norm(
                x, weight.shape, scale, getattr(real, "bias", None), epsilon
            )
    for (kind, offset), expected in references.items():
        if torch.allclose(got, expected, atol=1e-5):
            traced: Any = (
                module  # its parameters are looked up when it is called: tracing puts others in their place
            )
            return lambda x: operators.norm(
                x, traced.weight, getattr(traced, "bias", None), kind=kind, epsilon=epsilon, offset=offset
            )
    return None
