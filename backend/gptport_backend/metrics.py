"""What the engine counts, and how the counts reach Triton's metrics endpoint."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol

PUBLISH_SECONDS = 0.5


@dataclass
class Tally:
    """The engine's counts since it began, and its present load."""

    input_tokens: int = 0
    output_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)  # by finish reason; "error" for failures
    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0


class Publisher(Protocol):
    """Takes the tally to where people look at it."""

    def publish(self, tally: Tally) -> None:
        """Show the present counts."""


class TritonPublisher:
    """Publishes on Triton's own endpoint, through the `triton_python_backend_utils` module given to it.

    Each value is a call to another process, so only what has changed is published, twice a second at most.
    """

    def __init__(self, pb_utils: Any, model: str) -> None:
        self._labels = {"model": model}
        self._counter = pb_utils.MetricFamily.COUNTER
        self._gauge = pb_utils.MetricFamily.GAUGE
        self._family = pb_utils.MetricFamily
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, str], tuple[Any, float]] = {}
        self._next = 0.0

    def publish(self, tally: Tally) -> None:
        """Show the present counts, unless that was done just now; an engine at rest is always shown."""
        now = time.monotonic()
        if now < self._next and (tally.running or tally.waiting):
            return
        self._next = now + PUBLISH_SECONDS
        self._count("gptport_input_tokens_total", "Tokens of prompts computed", tally.input_tokens)
        self._count("gptport_output_tokens_total", "Tokens generated", tally.output_tokens)
        for reason, count in tally.finished.items():
            self._count("gptport_requests_total", "Requests ended, by finish reason", count, reason)
        self._show("gptport_running", "Requests that are computed now", tally.running)
        self._show("gptport_waiting", "Requests that wait for a slot", tally.waiting)
        self._show("gptport_kv_cache_bytes", "Memory of the KV cache", tally.cache_bytes)

    def _count(self, name: str, description: str, value: float, reason: str = "") -> None:
        metric, shown = self._metric(name, description, self._counter, reason)
        if value > shown:
            metric.increment(value - shown)
            self._metrics[name, reason] = (metric, value)

    def _show(self, name: str, description: str, value: float) -> None:
        metric, shown = self._metric(name, description, self._gauge, "")
        if value != shown:
            metric.set(value)
            self._metrics[name, ""] = (metric, value)

    def _metric(self, name: str, description: str, kind: Any, reason: str) -> tuple[Any, float]:
        if (name, reason) not in self._metrics:
            if name not in self._families:
                self._families[name] = self._family(name=name, description=description, kind=kind)
            labels = {**self._labels, "finish_reason": reason} if reason else self._labels
            self._metrics[name, reason] = (self._families[name].Metric(labels=labels), 0.0)
        return self._metrics[name, reason]
