"""vLLM, told to compute on all cores: on few cores faster than the one that its frontend gets by default."""

from __future__ import annotations

import functools
import os

from benchmarks.served import vllm

ask, step_seconds = vllm.ask, vllm.step_seconds
_CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))
running = functools.partial(vllm.running, variables={**vllm.VARIABLES, "VLLM_CPU_OMP_THREADS_BIND": _CORES})
