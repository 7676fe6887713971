"""What the engine counts, and how the counts reach Triton's metrics endpoint."""

from __future__ import annotations

import bisect
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the engine's loop: `prefill` and `decode` are the model's, the rest is Python. Responses leave in another thread.
Part: TypeAlias = Literal["schedule", "prefill", "decode", "sample", "answer"]

PUBLISH_SECONDS = 0.5
# From a decode step of a small model to a long answer on a busy machine.
BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


@dataclass
class Seconds:
    """How many durations were at most as long as each of BOUNDS, or longer; and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


@dataclass
class Tally:
    """The engine's counts since it began, and its present load."""

    input_tokens: int = 0  # computed
    reused_tokens: int = 0  # of prompts, copied
    preemptions: int = 0
    output_tokens: int = 0
    guessed_tokens: int = 0  # by prompt_lookup
    right_guesses: int = 0  # of them, tokens that were drawn
    finished: Counter[str] = field(default_factory=Counter)  # by finish reason; "error" for failures
    first_token: Seconds = field(default_factory=Seconds)  # from the arrival of a request
    next_token: Seconds = field(default_factory=Seconds)  # from the token before
    request: Seconds = field(default_factory=Seconds)  # from its arrival to its end
    parts: dict[Part, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds that each part of the loop has taken
    batch_size: int = 0  # of the last decode step
    running: int = 0
    waiting: int = 0
    cache_bytes: int = 0
    cache_budget: int = 0
    prefix_bytes: int = 0

    @contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Add the time that the body takes to a part of the work."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.parts[part] += time.perf_counter() - began


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
        self._metrics: dict[tuple[str, ...], tuple[Any, float]] = {}
        self._next = 0.0

    def publish(self, tally: Tally) -> None:
        """Show the present counts, unless that was done just now; an engine at rest is always shown."""
        now = time.monotonic()
        if now < self._next and (tally.running or tally.waiting):
            return
        self._next = now + PUBLISH_SECONDS
        self._count("gptport_input_tokens_total", "Tokens of prompts computed", tally.input_tokens)
        self._count(
            "gptport_prefix_hit_tokens_total", "Tokens of prompts reused from others", tally.reused_tokens
        )
        self._count(
            "gptport_preemptions_total", "Requests that gave their row up for a while", tally.preemptions
        )
        self._count("gptport_output_tokens_total", "Tokens generated", tally.output_tokens)
        self._count("gptport_guessed_tokens_total", "Tokens that prompt_lookup guessed", tally.guessed_tokens)
        self._count("gptport_right_guesses_total", "Of them, tokens that were right", tally.right_guesses)
        for reason, count in tally.finished.items():
            self._count(
                "gptport_requests_total", "Requests ended, by finish reason", count, finish_reason=reason
            )
        self._distribute("gptport_time_to_first_token_seconds", "Arrival to first token", tally.first_token)
        self._distribute("gptport_inter_token_seconds", "One token to the next", tally.next_token)
        self._distribute("gptport_request_seconds", "Arrival to end of a request", tally.request)
        for part, seconds in tally.parts.items():
            self._count(
                "gptport_step_seconds_total", "Time of the loop, by part of a step", seconds, part=part
            )
        self._show("gptport_batch_size", "Requests in the last decode step", tally.batch_size)
        self._show("gptport_running", "Requests that are computed now", tally.running)
        self._show("gptport_waiting", "Requests that wait for a slot", tally.waiting)
        self._show("gptport_kv_cache_bytes", "Memory of the KV cache", tally.cache_bytes)
        self._show("gptport_kv_cache_budget_bytes", "The most that it may take", tally.cache_budget)
        self._show("gptport_prefix_cache_bytes", "Memory of what is kept to be reused", tally.prefix_bytes)

    def _distribute(self, name: str, description: str, seconds: Seconds) -> None:
        """A histogram as Prometheus reads it, of counters: Triton before 24.12 offers no other way."""
        upto = 0
        for bound, count in zip((*BOUNDS, float("inf")), seconds.counts, strict=True):
            upto += count
            label = "+Inf" if bound == float("inf") else str(bound)
            self._count(f"{name}_bucket", f"{description}, how many at most so long", upto, le=label)
        self._count(f"{name}_count", f"{description}, how many", upto)
        self._count(f"{name}_sum", f"{description}, all together", seconds.total)

    def _count(self, name: str, description: str, value: float, **labels: str) -> None:
        metric, shown = self._metric(name, description, self._counter, labels)
        if value > shown:
            metric.increment(value - shown)
            self._metrics[name, *labels.values()] = (metric, value)

    def _show(self, name: str, description: str, value: float) -> None:
        metric, shown = self._metric(name, description, self._gauge, {})
        if value != shown:
            metric.set(value)
            self._metrics[name,] = (metric, value)

    def _metric(self, name: str, description: str, kind: Any, labels: dict[str, str]) -> tuple[Any, float]:
        key = (name, *labels.values())
        if key not in self._metrics:
            if name not in self._families:
                self._families[name] = self._family(name=name, description=description, kind=kind)
            self._metrics[key] = (self._families[name].Metric(labels={**self._labels, **labels}), 0.0)
        return self._metrics[key]
