"""Matrices that a checkpoint has in integers already, by GPTQ or AWQ: taken as they are.

Both store int32 words of eight 4-bit (or, GPTQ, four 8-bit) values, the first in the lowest bits:

| | values | zero points | scales |
|---|---|---|---|
| GPTQ | qweight [K / 8, N], words along K | qzeros [groups, N / 8], one less than they are (not in `gptq_v2`) | [groups, N] |
| AWQ | qweight [K, N / 8], words along N, in the order 0 2 4 6 1 3 5 7 | qzeros [groups, N / 8], same order | [groups, N] |

Sources: AutoGPTQ, `auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`; AutoAWQ, `awq/utils/packing_utils.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .errors import CheckpointError, UnsupportedModel
from .quantize import Blocks, pack

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from .precision import Quantization

VALUES = ".qweight"
KINDS = (VALUES, ".qzeros", ".scales", ".g_idx")
"""The tensors of a module; the last need not be there."""
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the values 0 to 7 are in a word
_SMALLEST_BLOCK = 16
_TAKEN = {("gptq", "gptq"): (4, 8), ("gptq", "gptq_v2"): (4, 8), ("awq", "gemm"): (4,)}  # bits


@dataclass(frozen=True)
class Packing:
    """How a checkpoint stores its matrices.

    Attributes:
        method: `gptq` or `awq`.
        bits: of a value.
        group_size: weights that share a scale, along the input features; -1 for all.
        zero_offset: what is added to a stored zero point.
    """

    method: str
    bits: int
    group_size: int
    zero_offset: int

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Packing:
        """Read the quantization_config of a configuration.

        Raises:
            UnsupportedModel: it says something else than GPTQ in 4 or 8 bits, or AWQ in 4, or packs them for one kernel.
        """
        method = str(settings.get("quant_method"))
        packing = _packing(settings, method)
        taken = _TAKEN.get((method, packing), ())
        bits = _whole(settings, "bits", "w_bit") if taken else 0
        if bits not in taken:
            raise UnsupportedModel(
                f"the checkpoint is quantized by {method} ({settings.get('bits')} bits, packed as {packing}); "
                "gptport takes GPTQ in 4 or 8 bits (gptq, gptq_v2), AWQ in 4 bits (gemm), and checkpoints that are not quantized"
            )
        group_size = _whole(settings, "group_size", "q_group_size", default=128)
        return cls(method, bits, group_size, 1 if packing == "gptq" else 0)

    def shape(self, words: tuple[int, ...]) -> tuple[int, int]:
        """Of the matrix [N, K] whose values are in words of that shape."""
        times = 32 // self.bits
        return (words[1], words[0] * times) if self.method == "gptq" else (words[1] * times, words[0])


def _packing(settings: Mapping[str, Any], method: str) -> str:
    """How the words of a method are laid out: the names are those of transformers' configurations, and of AutoGPTQ 0.6."""
    if settings.get("is_marlin_format"):
        return "marlin"
    version = settings.get("version") if method == "awq" else None
    default = "gemm" if method == "awq" else method
    return str(version or settings.get("checkpoint_format") or settings.get("format") or default).lower()


def _whole(settings: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these settings that is there, which some tools write as a string."""
    name = next((name for name in names if name in settings), names[0])
    value = settings.get(name, default)
    try:
        return int(str(value))
    except ValueError as error:
        raise UnsupportedModel(
            f"the checkpoint's quantization_config has {name} = {json.dumps(value)}, which is no whole number; "
            "set it to what the checkpoint was quantized with"
        ) from error


@dataclass(frozen=True)
class Packed:
    """A matrix [N, K] in integers, one scale and one zero point for each group of input features.

    Attributes:
        values: uint8 [N, K].
        scales: float32 [N, groups].
        zero_points: int16 [N, groups].
        bits: of a value.
    """

    values: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.int16]
    bits: int

    def dense(self) -> torch.Tensor:
        """Float32 [N, K]: (value - zero point) · scale."""
        size = self.values.shape[1] // self.scales.shape[1]
        zero_points, scales = (each.repeat(size, axis=1) for each in (self.zero_points, self.scales))
        return torch.from_numpy((self.values - zero_points).astype(np.float32) * scales)

    def blocks(self, quantization: Quantization) -> Blocks | None:
        """As `MatMulNBits` reads them; a group may have several blocks. None if it has not a whole number of them."""
        times, rest = divmod(self.values.shape[1] // self.scales.shape[1], quantization.block_size)
        if rest:
            return None
        return Blocks(
            pack(self.values.reshape(len(self.values), -1, quantization.block_size), self.bits),
            self.scales.repeat(times, axis=1),
            pack(self.zero_points.astype(np.uint8).repeat(times, axis=1), self.bits),
        )


def block_size(group_size: int) -> int:
    """Of the blocks that groups of that size are stored in.

    Raises:
        UnsupportedModel: the kernel has no blocks for them.
    """
    size = 128 if group_size == -1 else group_size
    if size < _SMALLEST_BLOCK or size & (size - 1):
        raise UnsupportedModel(
            f"the checkpoint has groups of {group_size} weights; MatMulNBits takes powers of two from {_SMALLEST_BLOCK}"
        )
    return size


def read(name: str, packing: Packing, tensor: Callable[[str], torch.Tensor | None]) -> Packed:
    """Unpack the matrix of a module.

    Args:
        name: of the module, such as `model.layers.0.mlp.up_proj`.
        packing: how it is stored.
        tensor: name → tensor of the checkpoint, None if there is none.

    Raises:
        CheckpointError: a part is missing.
        UnsupportedModel: the groups are not of consecutive weights, or not alike, or a zero point is out of range.
    """
    parts = {kind: tensor(f"{name}.{kind}") for kind in ("qweight", "qzeros", "scales")}
    missing = [f"{name}.{kind}" for kind, part in parts.items() if part is None]
    if missing:
        raise CheckpointError(f"the checkpoint has no {', '.join(missing)}; is it complete?")
    words, zeros, scales = (part for part in parts.values() if part is not None)
    along_features = packing.method == "gptq"
    values = _unpacked(words.numpy().T if along_features else words.numpy(), packing)
    values = values if along_features else values.T
    zero_points = _unpacked(zeros.numpy(), packing).astype(np.int16).T + np.int16(packing.zero_offset)
    if values.shape[1] > packing.group_size > 0 and values.shape[1] % packing.group_size:
        raise UnsupportedModel(
            f"{name} has {values.shape[1]} input features in groups of {packing.group_size}, the last of them smaller; "
            "gptport takes groups that are all alike"
        )
    _check_order(name, tensor(f"{name}.g_idx"), values.shape[1] // len(scales))
    if zero_points.max() >= 1 << packing.bits:
        raise UnsupportedModel(
            f"{name} has the zero point {zero_points.max()}, which does not fit into {packing.bits} bits"
        )
    return Packed(np.ascontiguousarray(values), scales.float().numpy().T.copy(), zero_points, packing.bits)


def _unpacked(words: NDArray[np.int32], packing: Packing) -> NDArray[np.uint8]:
    """[rows, words] → [rows, values]."""
    places = _AWQ_ORDER if packing.method == "awq" else range(32 // packing.bits)
    shifts = np.array(places, np.uint32) * packing.bits
    values = (words.astype(np.uint32)[..., None] >> shifts) & ((1 << packing.bits) - 1)
    return values.reshape(len(words), -1).astype(np.uint8)


def _check_order(name: str, groups: torch.Tensor | None, size: int) -> None:
    if groups is not None and not torch.equal(groups, torch.arange(len(groups), dtype=groups.dtype) // size):
        raise UnsupportedModel(
            f"{name} was quantized with desc_act: the weights of a group do not lie side by side, which MatMulNBits needs; "
            "take a checkpoint with desc_act = false"
        )
