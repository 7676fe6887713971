"""Rotary position embeddings: how a model's own code rotates, and by which angles, found by asking it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from . import operators, recording
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def is_rotary(module: nn.Module) -> bool:
    """Whether the module makes rotary angles: it has inverse frequencies."""
    return any(
        name.endswith("inv_freq") and "original" not in name
        for name, _ in module.named_buffers(recurse=False)
    )


def tables(meta: nn.Module, path: str, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each float32 [length, pairs], as a model's own rotary module makes them.

    Args:
        meta: the model, without memory.
        path: of the module; behind a colon the kind of layer, for a module that makes angles for several.
        length: positions, from 0.

    Raises:
        UnsupportedModel: the angles depend on more than the position.
    """
    name, _, kind = path.partition(":")
    module: Any = meta.get_submodule(name)
    scaling = module.rope_type if isinstance(getattr(module, "rope_type", None), str) else "default"
    if scaling in ("dynamic", "longrope"):
        raise UnsupportedModel(
            f"rotary scaling {scaling!r} of {name} changes with the length of the sequence"
        )
    with torch.no_grad():
        real = type(module)(module.config)
        cos, sin = real(torch.zeros(1), torch.arange(length)[None], *([kind] if kind else []))
        count = next(b for n, b in real.named_buffers() if n.endswith("inv_freq")).shape[0]
    for first, second in (
        (slice(0, count), slice(count, None)),
        (slice(0, None, 2), slice(1, None, 2)),
        (slice(None), slice(None)),
    ):
        if cos[..., first].shape[-1] == count and all(
            torch.equal(t[..., first], t[..., second]) for t in (cos, sin)
        ):
            return cos[0, :, first], sin[0, :, first]
    raise UnsupportedModel(f"{name} gives the two axes of a pair different angles")


def embedding(path: str, meta: nn.Module) -> Callable[..., Any]:
    def forward(
        x: torch.Tensor, position_ids: torch.Tensor, kind: str = ""
    ) -> tuple[torch.Tensor, torch.Tensor]:
        which = f"{path}:{kind}" if kind else path
        with recording.paused():
            pairs = tables(meta, which, 1)[0].shape[-1]
        table = operators.rotary_table(x, position_ids, which, 2 * pairs)
        return table, table

    return forward


def application(*, interleaved: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """What stands for a model's `apply_rotary_pos_emb`."""

    def apply(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert cos is sin, "a swapped rotary module returns its table twice"
        rotated = [operators.rotary(x, cos, interleaved=interleaved) for x in (query, key)]
        return rotated[0], rotated[1]

    return apply


def is_interleaved(apply: Callable[..., Any]) -> bool:
    """Whether a model's own function rotates pairs that lie side by side.

    Raises:
        UnsupportedModel: it rotates neither these nor pairs that are half a head apart.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 8, generator=generator) for _ in range(2))
    angles = torch.randn(1, 3, 4, generator=generator)
    for interleaved in (False, True):
        expected = [_rotated(x, angles, interleaved=interleaved) for x in (query, key)]
        for table in (angles.repeat_interleave(2, -1) if interleaved else angles.repeat(1, 1, 2), angles):
            with suppress(RuntimeError, TypeError, ValueError):
                got = apply(query, key, table.cos(), table.sin())
                if all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True)):
                    return interleaved
    raise UnsupportedModel(f"{apply.__module__}.apply_rotary_pos_emb rotates neither halves nor neighbours")


def _rotated(x: torch.Tensor, angles: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """`operators.rotary` by its definition: x [..., D] by angles [..., D / 2]."""
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    pairs = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
