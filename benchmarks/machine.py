"""The machine that is measured on, and how fast it reads memory, which is what limits decoding.

python -m benchmarks.machine THREADS    print the bandwidth in bytes a second; in a process of its own, for its memory
"""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_BYTES = 1 << 30  # a thread; several times what caches hold
_ROUNDS = 5


def processor() -> str:
    """The processor's name as Linux knows it, and how many of its cores this process may use."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].partition(':')[2].strip() if names else platform.machine()} × {len(names)}"


def read_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read together from memory, in the best of several rounds."""
    command = [sys.executable, "-m", "benchmarks.machine", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure(threads: int) -> float:
    import numpy as np

    memory = [np.ones(_BYTES // 8, np.uint64) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, memory))  # numpy lets go of the interpreter's lock meanwhile
            best = max(best, threads * _BYTES / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    sys.stdout.write(f"{_measure(int(sys.argv[1]))}\n")
