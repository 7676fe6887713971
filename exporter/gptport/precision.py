"""The precisions of an export: what the graph stores and computes in, and how close to the checkpoint it has to be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

BLOCK_SIZES = (16, 32, 64, 128, 256)
# Of 8 bits. Blocks of 32 are no more exact (perplexity +0.6 % with either), and onnxruntime multiplies them a third slower.
EIGHT_BIT_BLOCK = 128


@dataclass(frozen=True)
class Quantization:
    """How the matrices of a model are stored in integers.

    Attributes:
        algorithm: a key of `ALGORITHMS`.
        bits: of a weight, 4 or 8. The token embedding has 8 in either case.
        block_size: weights that share a scale, along the input features.
        symmetric: whether the integers stand for values around zero; otherwise each block has a zero point.
        head_bits: of a weight of the head, 8 or those of the others. What has 8 bits beside 4 is in blocks of `EIGHT_BIT_BLOCK`
            or less.
    """

    algorithm: str
    bits: int
    block_size: int = 32
    symmetric: bool = False
    head_bits: int = 8


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        name: as on the command line and in the manifest.
        dtype_name: torch's name of the dtype of activations, the KV cache and all weights that are not quantized.
            Logits are float32 in every precision.
        tolerance: the largest logit difference to the checkpoint in float32, relative to the largest logit (absolute value).
        max_perplexity_increase: the most that the perplexity of a text may rise, relative to the checkpoint's.
        quantization: of the weights, if there is any.
    """

    name: str
    dtype_name: str
    tolerance: float
    max_perplexity_increase: float
    quantization: Quantization | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of that name."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype_name)
        return found


# A difference to the checkpoint says little about weights in integers: there the perplexity decides, and the tolerance finds
# graphs that are wrong.
PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32", "float32", 1e-4, 0.001),
    "fp16": Precision("fp16", "float16", 2e-2, 0.01),
    "bf16": Precision("bf16", "bfloat16", 1e-1, 0.03),
    "int8": Precision("int8", "float32", 0.5, 0.03, Quantization("rtn", 8, EIGHT_BIT_BLOCK)),
    "int4": Precision("int4", "float32", 2.0, 0.25, Quantization("rtn", 4)),
}

ALGORITHMS: Mapping[str, str] = {
    "rtn": "round to nearest",
    "k_quant": "a search for the scale and the zero point of each block that lose least; minutes for a large model",
    "gptq": "column by column, making up for what is lost as the inputs on a text say",
    "hqq": "half-quadratic: zero points that are not whole numbers; onnxruntime's CPU kernel for them is slow",
    "smoothquant": "int8 by rows, of activations too: 1.8 times as fast with 16 of them, on CPUs with VNNI",
}


def chosen(
    name: str,
    *,
    algorithm: str | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    head_bits: int | None = None,
    compute: str | None = None,
    max_perplexity_increase: float | None = None,
) -> Precision:
    """The precision of that name, changed in what is given.

    Raises:
        UsageError: there is none, or it has nothing of that kind to change.
    """
    found = by_name(name)
    if found.quantization is not None:
        default = found.quantization
        quantization = Quantization(
            algorithm or default.algorithm,
            default.bits,
            default.block_size if block_size is None else block_size,
            default.symmetric if symmetric is None else symmetric,
            default.head_bits if head_bits is None else head_bits,
        )
        found = replace(found, quantization=_checked(quantization))
    elif any(value is not None for value in (algorithm, block_size, symmetric, head_bits, compute)):
        raise UsageError(f"{name} is not quantized; --quantization and its like go with int8 and int4")
    if compute is not None:
        if compute not in ("fp32", "fp16", "bf16"):
            raise UsageError(f"--compute {compute!r} is not one of fp32, fp16, bf16")
        found = replace(found, dtype_name=PRECISIONS[compute].dtype_name)
        if found.quantization and found.quantization.algorithm == "smoothquant" and compute != "fp32":
            raise UsageError(
                f"smoothquant does not go with --compute {compute}: onnxruntime has its products on the CPU only, in float32"
            )
    if max_perplexity_increase is not None:
        found = replace(found, max_perplexity_increase=max_perplexity_increase)
    return found


def by_name(name: str) -> Precision:
    """The precision of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _checked(quantization: Quantization) -> Quantization:
    if quantization.algorithm not in ALGORITHMS:
        raise UsageError(f"--quantization {quantization.algorithm!r} is not one of {', '.join(ALGORITHMS)}")
    if quantization.block_size not in BLOCK_SIZES:
        raise UsageError(
            f"--block-size {quantization.block_size} is not one of {', '.join(map(str, BLOCK_SIZES))}"
        )
    if quantization.head_bits not in (8, quantization.bits):
        raise UsageError(
            f"--head-bits {quantization.head_bits} is not {' or '.join(map(str, sorted({8, quantization.bits})))}"
        )
    if quantization.algorithm == "hqq" and quantization.bits != 4:
        raise UsageError("hqq goes with int4; 8-bit weights lose little by rtn")
    if quantization.algorithm == "smoothquant" and quantization.bits != 8:
        raise UsageError("smoothquant goes with int8; for 4-bit weights take k_quant or gptq")
    if quantization.symmetric and quantization.algorithm != "rtn":
        raise UsageError(f"{quantization.algorithm} needs zero points; --symmetric goes with rtn")
    return quantization
