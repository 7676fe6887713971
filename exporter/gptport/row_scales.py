"""Matrices in integers with one scale for each row, as `MatMulIntegerToFloat` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .scratch import Scratch, rows_of_a_piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

TOP = 127
"""The largest integer; −128 is not used."""
TINY = 1e-30
"""What the largest value of a row of zeros is taken to be."""
_SCRATCH = Scratch()


@dataclass(frozen=True)
class Rows:
    """A matrix [N, K] whose input features were multiplied by some factors, in integers around zero.

    Attributes:
        packed: int8 [K, N].
        scales: float32 [N].
        factors: what the inputs are to be multiplied by in turn, float32 [K].
    """

    packed: NDArray[np.int8]
    scales: NDArray[np.float32]
    factors: NDArray[np.float32]


def by_rows(matrix: torch.Tensor, smoothing: Sequence[float]) -> Rows:
    """Quantize a matrix [N, K] of any floating point, its input features multiplied by `smoothing`."""
    rows, features = matrix.shape
    by = torch.tensor(smoothing)
    packed, scales = torch.empty(features, rows, dtype=torch.int8), torch.empty(rows)
    several = rows_of_a_piece(features)
    for first in range(0, rows, several):
        piece = matrix[first : first + several]
        values = torch.mul(piece, by, out=_SCRATCH.tensor("values", piece.shape, torch.float32))
        part = slice(first, first + len(piece))
        scales[part] = scales_of(values)
        packed[:, part] = values.div_(scales[part].unsqueeze(1)).round_().T
    return Rows(packed.numpy(), scales.numpy(), (1 / by).numpy())


def scales_of(values: torch.Tensor) -> torch.Tensor:
    """Of rows [N, K]: the value of 1, [N]."""
    low, high = values.aminmax(dim=1)
    return torch.maximum(high, -low).clamp_(min=TINY).div_(TOP)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """What the integers of rows [N, K] stand for."""
    scales = scales_of(values).unsqueeze(1)
    return (values / scales).round_().mul_(scales)
