"""Matrices of a checkpoint in another dtype or turned around, piece by piece, in memory that is used again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .scratch import Scratch, rows_of_a_piece

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SCRATCH = Scratch()


def rows(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The rows of matrices, a few at a time."""
    for part in parts:
        for several in part.split(rows_of_a_piece(part.shape[1])):
            yield _cast(several, dtype)


def columns(parts: Sequence[torch.Tensor], dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """The columns of matrices that stand one below the other, a few at a time, each as a row."""
    features, height = parts[0].shape[1], sum(len(part) for part in parts)
    several = max(64, rows_of_a_piece(height))
    for first in range(0, features, several):
        strips = [part[:, first : first + several] for part in parts]
        turned = _SCRATCH.tensor("columns", (strips[0].shape[1], height), torch.float32)
        done = 0
        for strip in strips:
            straight = _SCRATCH.tensor("strip", strip.shape, torch.float32).copy_(strip)
            turned[:, done : done + len(strip)].copy_(straight.mT)
            done += len(strip)
        yield _cast(turned, dtype)


def _cast(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """By way of float32, which every value of a checkpoint fits in: torch is slow from one half precision to the other."""
    for each in dict.fromkeys((torch.float32, dtype)):
        if values.dtype != each:
            values = _SCRATCH.tensor(f"cast to {each}", values.shape, each).copy_(values)
    return values.contiguous()
