"""Matrices in integers, block by block, as `MatMulNBits` and `GatherBlockQuantized` read them.

By onnxruntime's quantizers, but for two: its GPTQ gives values instead of integers, and rounding them again loses what it won;
its rounding to nearest takes five times as long as ours, which gives the same integers.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from .scratch import Scratch, rows_of_a_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from .precision import Quantization
    from .row_scales import Rows

_ROWS = 4096  # quantized at once: what it takes beside the matrix itself stays small
_SCRATCH = Scratch()


@dataclass(frozen=True)
class Blocks:
    """A matrix [N, K] in blocks of `block_size` along K.

    Attributes:
        packed: uint8 [N, blocks, bytes of a block], the lower half of a byte first for 4 bits.
        scales: float32 [N, blocks].
        zero_points: uint8 [N, ⌈blocks · bits / 8⌉], packed in the same way; float32 [N, blocks] by hqq; None if symmetric.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[Any] | None

    def take(self, rows: Sequence[int]) -> Blocks:
        """The matrix of these rows."""
        index = np.asarray(rows)
        zero_points = None if self.zero_points is None else self.zero_points[index]
        return Blocks(self.packed[index], self.scales[index], zero_points)


def quantize(matrix: torch.Tensor, quantization: Quantization) -> Blocks:
    """Quantize a matrix [N, K] of any floating point."""
    if quantization.algorithm == "rtn":
        return _rtn(matrix, quantization)
    by = _ALGORITHMS[quantization.algorithm]
    pieces = (piece.float().numpy() for piece in matrix.split(_ROWS))
    return concatenated([by(piece, quantization) for piece in pieces])


def blocks_of(features: int, quantization: Quantization) -> int:
    """How many blocks a row of that many input features has; the last may be padded."""
    return -(-features // quantization.block_size)


def zero_points_width(features: int, quantization: Quantization) -> int:
    """Columns of `Blocks.zero_points`."""
    count = blocks_of(features, quantization)
    return count if quantization.algorithm == "hqq" else -(-count * quantization.bits // 8)


def gptq(matrix: torch.Tensor, hessian: torch.Tensor, quantization: Quantization) -> Blocks:
    """Quantize a matrix [N, K], column by column: what a column loses, the columns after it make up for.

    Args:
        matrix: float32.
        hessian: sum of xᵀ·x over inputs x of the matrix, [K, K].
        quantization: bits and block size.

    Source: Frantar et al., GPTQ, 2022, arXiv:2210.17323, algorithm 1.
    """
    size, top = quantization.block_size, 2**quantization.bits - 1
    left = functional.pad(matrix, (0, -matrix.shape[1] % size))
    factor = _inverse_factor(functional.pad(hessian, [0, left.shape[1] - matrix.shape[1]] * 2))
    values = torch.empty_like(left)
    scales, zero_points = [], []
    for start in range(0, left.shape[1], size):
        block, inverse = left[:, start : start + size].clone(), factor[start : start + size]
        low, high = block.amin(1).clamp(max=0), block.amax(1).clamp(min=0)
        scale = torch.where(high > low, (high - low) / top, 1.0)
        zero = (-low / scale).round()
        errors = torch.empty_like(block)
        for i in range(size):
            rounded = ((block[:, i] / scale).round() + zero).clamp(0, top)
            values[:, start + i] = rounded
            errors[:, i] = (block[:, i] - (rounded - zero) * scale) / inverse[i, start + i]
            block[:, i:] -= torch.outer(errors[:, i], inverse[i, start + i : start + size])
        left[:, start + size :] -= errors @ inverse[:, start + size :]
        scales.append(scale)
        zero_points.append(zero)
    packed = pack(values.to(torch.uint8).numpy().reshape(len(matrix), -1, size), quantization.bits)
    zeros = torch.stack(zero_points, 1).to(torch.uint8).numpy()
    return Blocks(packed, torch.stack(scales, 1).numpy(), pack(zeros, quantization.bits))


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse, after 1 % of the mean of the diagonal was added to it."""
    diagonal = hessian.diagonal()
    damped = hessian + torch.diag(torch.where(diagonal > 0, 0.01 * diagonal.mean(), 1.0))
    factor: torch.Tensor = torch.linalg.cholesky(
        torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
    )
    return factor


def concatenated(parts: Sequence[Blocks]) -> Blocks:
    """Several matrices with the same features, one below the other."""
    zero_points = [part.zero_points for part in parts if part.zero_points is not None]
    return Blocks(
        np.concatenate([part.packed for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(zero_points) if zero_points else None,
    )


class LazyIntegers:
    """The blocks of a matrix, or its rows, made when the first of its parts is asked for, and forgotten after the last."""

    def __init__(self, make: Callable[[], Blocks | Rows]) -> None:
        self._make = make
        self._integers: Blocks | Rows | None = None
        self._parts = 0
        self._taken: set[str] = set()
        self._lock = threading.Lock()

    def expect(self, part: str) -> Callable[[], NDArray[Any]]:
        """A function that gives the attribute `part` of them, once."""
        self._parts += 1
        return lambda: self._take(part)

    def _take(self, part: str) -> NDArray[Any]:
        with self._lock:
            if self._integers is None:
                self._integers = self._make()
            found: NDArray[Any] = getattr(self._integers, part)
            self._taken.add(part)
            if len(self._taken) == self._parts:
                self._integers, self._taken = None, set()
            return found


def _rtn(matrix: torch.Tensor, quantization: Quantization) -> Blocks:
    """Round to nearest: what onnxruntime's `quantize_matmul_4bits` and `quantize_matmul_8bits` give, a few rows at a time."""
    rows, features = matrix.shape
    size, bits = quantization.block_size, quantization.bits
    count = blocks_of(features, quantization)
    packed = torch.empty(rows, count, size * bits // 8, dtype=torch.uint8)
    scales = torch.empty(rows, count)
    zeros = torch.empty(rows, count, dtype=torch.uint8)
    several = rows_of_a_piece(count * size)
    for first in range(0, rows, several):
        piece = matrix[first : first + several]
        values = _SCRATCH.tensor("values", (len(piece), count * size), torch.float32)
        values[:, :features].copy_(piece)
        values[:, features:].zero_()
        part = slice(first, first + len(piece))
        _round(values.view(-1, count, size), quantization, packed[part], scales[part], zeros[part])
    zero_points = None if quantization.symmetric else pack(zeros.numpy(), bits)
    return Blocks(packed.numpy(), scales.numpy(), zero_points)


def _round(
    values: torch.Tensor,
    quantization: Quantization,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
) -> None:
    """Quantize blocks [rows, blocks, size], which are changed, into the other three.

    Halves are rounded up: floor(x + ½), of which the conversion to integers does the floor.
    """
    top = 2**quantization.bits - 1
    low, high = values.amin(2), values.amax(2)
    if quantization.symmetric:
        torch.div(torch.where(high.abs() > low.abs(), high, low), -(top // 2 + 1), out=scales)
        zero = torch.full_like(scales, top // 2 + 1)
    else:
        torch.div(high.clamp_(min=0) - low.clamp_(max=0), top, out=scales)
        zero = torch.where(scales == 0, 0.0, -low / scales).clamp_(0, top).add_(0.5).floor_()
    zeros.copy_(zero)
    values.mul_(torch.where(scales == 0, 0.0, 1 / scales).unsqueeze(2))
    values.add_(zero.unsqueeze(2)).add_(0.5).clamp_(0, top + 0.5)
    integers = _SCRATCH.tensor("integers", values.shape, torch.uint8).copy_(values)
    packed.copy_(torch.from_numpy(pack(integers.numpy(), quantization.bits)))


def _k_quant(matrix: NDArray[np.float32], quantization: Quantization) -> Blocks:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    blocks = _padded(matrix, quantization).reshape(-1, quantization.block_size)
    with np.errstate(divide="ignore", invalid="ignore"):  # blocks whose values are all the same
        values, scales, zero_points = quant_tensor_k_quant_cpu(
            blocks, quantization.bits, quantization.block_size
        )
    # Such a block comes back as zeros; its value v is |v| · (1 - 0), or |v| · (0 - 1).
    same = blocks.min(1, keepdims=True) == blocks.max(1, keepdims=True)
    first = blocks[:, :1]
    values = np.where(same, first > 0, values).astype(np.uint8)
    scales = np.where(same, np.abs(first), scales).astype(np.float32)
    zero_points = np.where(same, first < 0, zero_points).astype(np.uint8)
    rows = len(matrix)
    return Blocks(
        pack(values.reshape(rows, -1, quantization.block_size), quantization.bits),
        scales.reshape(rows, -1),
        pack(zero_points.reshape(rows, -1), quantization.bits),
    )


def _hqq(matrix: NDArray[np.float32], quantization: Quantization) -> Blocks:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        HQQWeightOnlyQuantConfig,
        HQQWeightOnlyQuantizer,
    )

    config = HQQWeightOnlyQuantConfig(block_size=quantization.block_size, bits=quantization.bits)
    values, scales, zero_points = HQQWeightOnlyQuantizer(config).quantize_internal(
        torch.from_numpy(_padded(matrix, quantization)),
        bits=quantization.bits,
        group_size=quantization.block_size,
    )
    rows = len(matrix)
    blocks = values.numpy().astype(np.uint8).reshape(rows, -1, quantization.block_size)
    return Blocks(
        pack(blocks, quantization.bits),
        scales.reshape(rows, -1).numpy(),
        zero_points.reshape(rows, -1).numpy(),
    )


def _padded(matrix: NDArray[np.float32], quantization: Quantization) -> NDArray[np.float32]:
    """With zeros up to a whole block."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % quantization.block_size)))


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Two values of 4 bits in a byte, along the last axis, the first in the lower half; 8 bits as they are."""
    if bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    pairs: NDArray[np.uint16] = np.ascontiguousarray(values).view("<u2")  # the first value is the lower byte
    return np.bitwise_or(pairs, pairs >> 4).astype(np.uint8)


_ALGORITHMS: dict[str, Callable[[NDArray[np.float32], Quantization], Blocks]] = {
    "k_quant": _k_quant,
    "hqq": _hqq,
}
