"""gptport: the exported model, run by the backend's own runner on its own cache."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from gptport_backend import manifest as manifests
from gptport_backend.kv_cache import KVCache
from gptport_backend.runner import Runner, RunnerOptions

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.job import Emit, Generate, Job


def prepare(job: Job) -> None:
    """`gptport export`, as a user runs it."""
    export = [
        sys.executable,
        "-m",
        "gptport",
        "export",
        str(job.checkpoint),
        "--precision",
        job.precision,
    ]
    # A random model has a perplexity near its vocabulary's size, which says nothing about a quantization.
    unlimited = ["--max-perplexity-increase", "1000%"]
    subprocess.run(
        [*export, *job.options, *unlimited, "--repository", str(job.folder), "--name", "model"], check=True
    )


def version(job: Job) -> Path:
    """The folder with the graph and its manifest."""
    return job.folder / "model" / "1"


def load(job: Job) -> Generate:
    """The runner with one slot, as the engine makes it."""
    manifest = manifests.read(version(job))
    runner = Runner(manifest, version(job), RunnerOptions(threads=job.threads), max_slots=1)
    cache = KVCache(manifest.cache, 1, manifest.max_length, runner.memory)
    cache.reserve(1, job.length, [0])

    def generate(new_tokens: int, emit: Emit) -> None:
        token = int(runner.prefill(cache, 0, [job.prompt], 0).on_host([0]).argmax())
        emit(token)
        for length in range(len(job.prompt), len(job.prompt) + new_tokens - 1):
            token = int(runner.decode(cache, [token], [length]).on_host([0]).argmax())
            emit(token)

    return generate
