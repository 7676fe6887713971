"""Memory that is used again: a page that the system has to clear first costs more time than what is computed in it."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

_PIECE = 1 << 17  # numbers: in four bytes each, they stay in a core's second cache


class Scratch(threading.local):
    """Tensors that are used again, each thread its own."""

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}
        # Beside the main thread, work is shared out among threads already: they do not share theirs out again.
        if threading.current_thread() is not threading.main_thread():
            torch.set_num_threads(1)

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """A tensor of any values; it is valid until this thread asks for one of that name again."""
        size = math.prod(shape) * dtype.itemsize
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size, dtype=torch.uint8)
        return kept[:size].view(dtype).view(*shape)


def rows_of_a_piece(width: int) -> int:
    """How many rows of that many numbers are worked on at once."""
    return max(1, _PIECE // max(width, 1))
