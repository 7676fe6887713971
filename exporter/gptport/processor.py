"""What the CPU of this machine can do, and what a graph needs of it."""

from __future__ import annotations

from pathlib import Path

VNNI = ("avx512_vnni", "avx_vnni")
"""What products of 8-bit integers need, either of them: without, onnxruntime adds pairs of them up in 16 bits, which saturate."""
_INFO = Path("/proc/cpuinfo")


def flags() -> frozenset[str]:
    """What Linux lists of the first core."""
    lines = _INFO.read_text(encoding="utf-8").splitlines()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split()[2:])


def missing(needed: tuple[str, ...]) -> str:
    """What a CPU that has none of the flags lacks, as the end of a message; "" for one that has, or where none is needed."""
    if not needed or flags().intersection(needed):
        return ""
    return (
        f"products by rows need a CPU with {' or '.join(needed)}, which this one has not: onnxruntime's sums would saturate; "
        "export with --quantization rtn, or on a machine like the one that is to serve it"
    )
