"""What the session does beside its steps."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from gptport_backend import manifest as manifests
from gptport_backend.errors import LoadError
from gptport_backend.kv_cache import KVCache
from gptport_backend.runner import Runner, RunnerOptions

if TYPE_CHECKING:
    from pathlib import Path


def test_logits_of_more_sequences_than_memory_holds_are_an_error_of_loading(version_dir: Path) -> None:
    with pytest.raises(LoadError, match=r"max_batch_size is 1000000000000, .*set a smaller one"):
        Runner(manifests.read(version_dir), version_dir, RunnerOptions(threads=1), max_slots=10**12)


def test_between_two_steps_its_threads_leave_the_cores_to_others(version_dir: Path) -> None:
    """Spinning they would take 20 ms each time; the least of several counts, as whatever else runs in this process adds to it."""
    runner = Runner(manifests.read(version_dir), version_dir, RunnerOptions(threads=2), max_slots=32)
    cache = KVCache(runner._manifest.cache, 32, 256, runner.memory)
    cache.reserve(32, 256, [])
    spent = []
    for _ in range(3):
        runner.prefill(cache, 0, [[1] * 200] * 32, 0)
        before = time.process_time()
        time.sleep(0.1)
        spent.append(time.process_time() - before)
    assert min(spent) < 0.005
