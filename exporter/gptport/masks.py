"""Masks, which transformers asks an attention's interface for: known by what they let a token see."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from transformers import masking_utils

from . import recording
from .errors import UnsupportedModel
from .own_attention import Mark, Marked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BORDERS = 4  # of windows or chunks, counted from position 0


def mask(
    *_: Any,
    batch_size: int,
    q_length: int,
    mask_function: Callable[..., Any],
    local_size: int | None = None,
    use_vmap: bool = False,
    **__: Any,
) -> torch.Tensor:
    """transformers' mask interface; see `ALL_MASK_ATTENTION_FUNCTIONS`. A tensor that stands for the mask."""
    window = local_size or 0
    kind = "other mask"
    if not use_vmap and window and _is_chunked(mask_function, window):
        kind = "chunked mask"
    elif not use_vmap and _is_causal(mask_function, window):
        kind = "mask"
    with recording.paused():
        shadow = torch.empty(batch_size, 1, q_length, q_length, device="meta")
    return Marked.of(shadow, Mark(kind, window=window))


def _is_causal(mask_function: Callable[..., Any], window: int) -> bool:
    """Whether a mask lets a token attend to itself and those before it, at most `window` of them if that is not 0."""

    def causal(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & ((query - key < window) | (window == 0))

    return _allows(mask_function, causal, window)


def _is_chunked(mask_function: Callable[..., Any], size: int) -> bool:
    """Whether a mask lets a token attend to itself and those before it in the same chunk of `size`."""
    return _allows(mask_function, lambda query, key: (key <= query) & (key // size == query // size), size)


def _allows(
    mask_function: Callable[..., Any],
    expected: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    size: int,
) -> bool:
    """Whether a mask is the expected one: tokens around the first borders of windows or chunks of `size` ask for every key."""
    with recording.paused():
        near = {n * size + i for n in range(_BORDERS) for i in range(-3, 5)}
        query = torch.tensor(sorted(at for at in near if at >= 0))[:, None]
        key = torch.arange(int(query.max()) + 2)[None, :]
        allowed = mask_function(0, 0, query, key)
        wanted = expected(query, key)
        return bool(torch.equal(allowed.expand_as(wanted), wanted))


@contextmanager
def chunks_without_padding() -> Iterator[None]:
    """Let transformers make the masks of chunks with zeros that have values for the rows' padding: there is none."""
    make = masking_utils.chunked_causal_mask_function

    def made(chunk_size: int, left_padding: torch.Tensor) -> Any:
        if not recording.is_zeros(left_padding):
            raise UnsupportedModel("the chunks of the model's attention begin elsewhere than at position 0")
        with recording.paused():
            return make(chunk_size, torch.zeros(left_padding.shape, dtype=torch.int64, device="cpu"))

    with patch.object(masking_utils, make.__name__, made):
        yield
