"""Whether this machine's CPU can run a model that needs more of it than others."""

from __future__ import annotations

from pathlib import Path

from gptport_backend.errors import LoadError

INFO = Path("/proc/cpuinfo")


def check(flags: tuple[str, ...], device: str) -> None:
    """LoadError unless `device` is the CPU and it has one of the flags, as Linux names them; without flags, anything is right.

    A model has some if it multiplies 8-bit integers by rows. Other CPUs add pairs of products up in 16 bits, which saturate.
    """
    if not flags:
        return
    if device != "cpu":
        raise LoadError(
            f"the model was exported with --quantization smoothquant, which onnxruntime does on the CPU only, not on {device}: "
            "set KIND_CPU in config.pbtxt, or export it in fp16"
        )
    lines = INFO.read_text(encoding="utf-8").splitlines()
    found = next((line for line in lines if line.startswith("flags")), "").split()
    if not set(flags).intersection(found):
        raise LoadError(
            f"the model was exported with --quantization smoothquant, for CPUs with {' or '.join(flags)}; this one has "
            "neither, and would give wrong numbers: export it with --quantization rtn"
        )
