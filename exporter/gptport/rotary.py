"""Rotary position embeddings: how a model's own code rotates, and by which angles, found by asking it."""

from __future__ import annotations

import inspect
import itertools
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from . import operators, recording
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn


FUNCTIONS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave", "apply_rotary_emb")
"""What models call their functions that rotate query and key."""


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
        UnsupportedModel: the angles depend on more than the position, such as on the length of the sequence.
    """
    name, _, kind = path.partition(":")
    module: Any = meta.get_submodule(name)
    if hasattr(module, _BUFFER):
        return _from_buffer(module, length)
    _check_length(name, module, length)
    with torch.no_grad():
        real = type(module)(module.config)
        made = real(torch.zeros(1), torch.arange(length)[None], *([kind] if kind else []))
        if isinstance(made, torch.Tensor):  # complex
            return made.real[0], made.imag[0]
        cos, sin = made
        count = next(
            b for n, b in real.named_buffers() if n.endswith("inv_freq") and n.startswith(kind)
        ).shape[0]
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


_BUFFER = "embed_positions"
"""Where models that look their angles up keep them: sines and cosines, [positions, 2 · pairs]."""


def looked_up_in(model: nn.Module) -> tuple[str, int] | None:
    """Path of the first module with a buffer of sines and cosines, and how many pairs of a head it has angles for."""
    for path, module in model.named_modules():
        buffer = dict(module.named_buffers(recurse=False)).get(_BUFFER)
        if buffer is not None:
            return path, buffer.shape[1] // 2
    return None


def looked_up(x: torch.Tensor, table: torch.Tensor | None) -> torch.Tensor:
    """`operators.rotary` of neighbours, of x [B,S,H,D]."""
    if table is None:
        raise UnsupportedModel("the model rotates by angles that gptport cannot find")
    return operators.rotary(x.transpose(1, 2), table, interleaved=True).transpose(1, 2)


def _from_buffer(module: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each float32 [length, pairs], by the function that the model's source fills the buffer with."""
    positions, width = getattr(module, _BUFFER).shape
    make = getattr(sys.modules[type(module).__module__], "create_sinusoidal_positions", None)
    if make is None or length > positions:
        raise UnsupportedModel(
            f"{type(module).__name__} has no angles for {length} positions that can be made"
        )
    with torch.device("cpu"):
        sin, cos = make(positions, width).float()[:length].chunk(2, -1)
    return cos, sin


def takes_one_tensor(apply: Callable[..., Any]) -> bool:
    """Whether a model's function rotates query and key one by one: (tensor, sin, cos)."""
    return list(inspect.signature(apply).parameters)[1:3] == ["sin", "cos"]


def takes_one_of_heads_last(apply: Callable[..., Any]) -> bool:
    """Whether a model's function rotates one tensor [B,S,H,D], pairs that are half a head apart: (x, cos, sin, 2)."""
    if list(inspect.signature(apply).parameters) != ["x", "cos", "sin", "unsqueeze_dim"]:
        return False
    generator = torch.Generator().manual_seed(0)
    x, angles = torch.randn(1, 3, 2, 8, generator=generator), torch.randn(1, 3, 4, generator=generator)
    expected = _rotated(x.transpose(1, 2), angles, interleaved=False).transpose(1, 2)
    whole = angles.repeat(1, 1, 2)
    return torch.allclose(apply(x, whole.cos(), whole.sin(), 2), expected, atol=1e-6)


def heads_last(x: torch.Tensor, cos: Any, *_: Any, **__: Any) -> torch.Tensor:
    """What stands for such a function."""
    return operators.rotary(x.transpose(1, 2), cos, interleaved=False).transpose(1, 2)


def check_neighbours(apply: Callable[..., Any]) -> None:
    """UnsupportedModel if such a function rotates anything else than pairs that lie side by side."""
    generator = torch.Generator().manual_seed(0)
    x, angles = torch.randn(1, 3, 2, 8, generator=generator), torch.randn(1, 3, 4, generator=generator)
    expected = _rotated(x.transpose(1, 2), angles, interleaved=True).transpose(1, 2)
    if not torch.allclose(apply(x, angles.sin(), angles.cos()), expected, atol=1e-6):
        raise UnsupportedModel(f"{apply.__module__}.apply_rotary_pos_emb rotates no neighbours")


def _check_length(name: str, module: Any, length: int) -> None:
    """Up to the length that a model was first trained for, these scalings give every position one angle."""
    config, scaling = module.config, getattr(module, "rope_type", "default")
    original = (getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings")
    limit = (
        original
        or getattr(config, "original_max_position_embeddings", None)
        or config.max_position_embeddings
    )
    if scaling in ("dynamic", "longrope") and length > limit:
        raise UnsupportedModel(
            f"rotary scaling {scaling!r} of {name} changes with the length of a sequence of more than {limit} tokens; "
            f"pass --max-length {limit}"
        )


def embedding(path: str, meta: nn.Module) -> Callable[..., Any]:
    """What stands for a rotary module: its table twice, for cosines and sines, or once where these are one complex tensor."""

    def forward(x: torch.Tensor, position_ids: torch.Tensor, kind: str = "", layer_type: str = "") -> Any:
        kind = kind or layer_type
        which = f"{path}:{kind}" if kind else path
        with recording.paused():
            pairs = tables(meta, which, 1)[0].shape[-1]
            module: Any = meta.get_submodule(path)
            made = type(module)(module.config)(
                x.new_zeros(1, device="cpu"), torch.zeros(1, 1), *([kind] if kind else [])
            )
        table = operators.rotary_table(x, position_ids, which, 2 * pairs)
        return table if isinstance(made, torch.Tensor) else (table, table)

    return forward


def application(
    *, interleaved: bool, backwards: bool = False, heads_last: bool = False
) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """What stands for a model's `apply_rotary_pos_emb`."""

    def apply(
        query: torch.Tensor, key: torch.Tensor, cos: Any, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        given = [x.transpose(1, 2) if heads_last else x for x in (query, key)]
        rotated = [operators.rotary(x, cos, interleaved=interleaved, backwards=backwards) for x in given]
        first, second = (x.transpose(1, 2) if heads_last else x for x in rotated)
        return first, second

    return apply


def way(apply: Callable[..., Any]) -> dict[str, bool]:
    """How a model's own function rotates.

    Returns:
        `interleaved`: pairs that lie side by side; `backwards`: by the negative angles; `heads_last`: [B,S,H,D].

    Raises:
        UnsupportedModel: it rotates neither these nor pairs that are half a head apart.
    """
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 3, 8, generator=generator) for _ in range(2))
    angles = torch.randn(1, 3, 4, generator=generator)
    arguments = [
        (table.cos(), table.sin())
        for table in (angles.repeat_interleave(2, -1), angles.repeat(1, 1, 2), angles)
    ]
    tables = (*arguments, (torch.polar(torch.ones_like(angles), angles),))
    ways = itertools.product((False, True), (1, -1), (False, True))
    for heads_last, sign, interleaved in ways:
        expected = [_rotated(x, sign * angles, interleaved=interleaved) for x in (query, key)]
        # Products of query and key are the same where both have their axes in another order afterwards.
        reordered = [torch.cat([x[..., ::2], x[..., 1::2]], -1) for x in expected]
        for same, given in itertools.product((expected, reordered) if interleaved else (expected,), tables):
            if _gives(apply, (query, key), given, same, heads_last=heads_last):
                return {"interleaved": interleaved, "backwards": sign < 0, "heads_last": heads_last}
    raise UnsupportedModel(f"{apply.__module__}.{apply.__name__} rotates neither halves nor neighbours")


def _gives(
    apply: Callable[..., Any],
    rotated: Sequence[torch.Tensor],
    tables: Sequence[torch.Tensor],
    expected: Sequence[torch.Tensor],
    *,
    heads_last: bool,
) -> bool:
    """Whether a model's function rotates query and key [B,H,S,D], or [B,S,H,D], so."""
    given, wanted = ([x.transpose(1, 2) if heads_last else x for x in each] for each in (rotated, expected))
    with suppress(RuntimeError, TypeError, ValueError, IndexError):
        got = apply(*given, *tables)
        return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))
    return False


def _rotated(x: torch.Tensor, angles: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """`operators.rotary` by its definition: x [..., D] by angles [..., D / 2]."""
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    pairs = (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
    return torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
