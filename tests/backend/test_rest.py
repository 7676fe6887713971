"""Without work the engine gives back the memory that is for work alone."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import psutil

from gptport_backend import manifest as manifests
from gptport_backend.kv_cache import KVCache
from gptport_backend.runner import Runner, RunnerOptions
from test_engine import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from conftest import Served


def own_memory() -> int:
    """Bytes that this process alone has."""
    own: int = psutil.Process().memory_full_info().uss
    return own


def test_memory_is_given_back_when_idle(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptport_backend.engine.IDLE_SECONDS", 0.05)
    served = serve()
    served.ask(text_input="hello", max_tokens=3).wait()
    assert served.engine._tally.cache_bytes >= 0
    wait_until(lambda: served.engine._cache.bytes == 0)
    assert served.ask(text_input="hello", max_tokens=3).wait().finish_reason == "length"


def test_what_onnxruntime_took_for_large_steps_is_given_back_too(version_dir: Path) -> None:
    runner = Runner(manifests.read(version_dir), version_dir, RunnerOptions(threads=1), max_slots=32)
    cache = KVCache(runner._manifest.cache, 32, 256, runner.memory)
    cache.reserve(32, 256, [])
    runner.decode(cache, [1], [0])
    before = own_memory()
    runner.prefill(cache, 0, [[1] * 200] * 32, 0)
    large = own_memory()
    runner.shrink(cache)
    assert own_memory() - before < (large - before) / 2


def test_a_request_that_comes_meanwhile_is_taken_at_once(
    serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptport_backend.engine.IDLE_SECONDS", 0.05)
    served = serve()
    resting, go_on = threading.Event(), threading.Event()

    def shrink(*_: Any) -> None:
        resting.set()
        go_on.wait(20)

    served.runner.shrink = shrink  # type: ignore[method-assign]
    served.ask(text_input="hello", max_tokens=3).wait()
    assert resting.wait(20)
    taken = threading.Event()
    answers = []

    def ask() -> None:
        answers.append(served.ask(text_input="hello", max_tokens=3))
        taken.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert taken.wait(10)
    assert answers[0].pieces == []
    go_on.set()
    assert answers[0].wait().finish_reason == "length"
