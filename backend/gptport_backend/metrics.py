"""What the engine counts, and how the counts reach Triton's metrics endpoint."""

from __future__ import annotations

import bisect
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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
    requests: Counter[str] = field(
        default_factory=Counter
    )  # ended, by the finish reason of the last answer, or "error"
    answers: Counter[str] = field(default_factory=Counter)  # the same of each answer; a request has `n`
    first_token: Seconds = field(default_factory=Seconds)  # of each answer, from the arrival of its request
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


@dataclass(frozen=True)
class Metric:
    """A family of metrics as Triton shows it: its value, or with a `label` a value for each of the label's.

    A histogram is counters of a name with `_bucket`, `_count` and `_sum`: Triton before 24.12 offers no other way.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    read: Callable[[Tally], Any]  # a number; with a `label` numbers by its values; of a histogram Seconds
    label: str = ""


METRICS = (
    Metric(
        "gptport_requests_total",
        "counter",
        "requests that have ended, by the finish reason of the answer that ended last, or `error`",
        lambda tally: tally.requests,
        "finish_reason",
    ),
    Metric(
        "gptport_answers_total",
        "counter",
        "answers that have ended, by finish reason, or `error`; a request has `n` of them",
        lambda tally: tally.answers,
        "finish_reason",
    ),
    Metric(
        "gptport_input_tokens_total",
        "counter",
        "tokens of prompts computed, and of answers again that had given their row up",
        lambda tally: tally.input_tokens,
    ),
    Metric(
        "gptport_prefix_hit_tokens_total",
        "counter",
        "tokens of prompts copied from other sequences instead",
        lambda tally: tally.reused_tokens,
    ),
    Metric(
        "gptport_output_tokens_total",
        "counter",
        "tokens generated, those of all beams included",
        lambda tally: tally.output_tokens,
    ),
    Metric(
        "gptport_guessed_tokens_total",
        "counter",
        "tokens that `prompt_lookup` guessed",
        lambda tally: tally.guessed_tokens,
    ),
    Metric(
        "gptport_right_guesses_total",
        "counter",
        "of them, tokens that were right",
        lambda tally: tally.right_guesses,
    ),
    Metric(
        "gptport_preemptions_total",
        "counter",
        "how often a sequence gave its row of the KV cache up for a while",
        lambda tally: tally.preemptions,
    ),
    Metric(
        "gptport_time_to_first_token_seconds",
        "histogram",
        "of each answer: arrival of the request to its first token",
        lambda tally: tally.first_token,
    ),
    Metric(
        "gptport_inter_token_seconds", "histogram", "one token to the next", lambda tally: tally.next_token
    ),
    Metric(
        "gptport_request_seconds",
        "histogram",
        "arrival of a request to the end of its last answer",
        lambda tally: tally.request,
    ),
    Metric(
        "gptport_step_seconds_total",
        "counter",
        "time of the loop: `prefill` and `decode` are the graph's, `schedule`, `sample` and `answer` the loop's own",
        lambda tally: tally.parts,
        "part",
    ),
    Metric(
        "gptport_batch_size", "gauge", "sequences in the last decode step", lambda tally: tally.batch_size
    ),
    Metric(
        "gptport_running",
        "gauge",
        "sequences that are computed now: an answer or a beam each",
        lambda tally: tally.running,
    ),
    Metric(
        "gptport_waiting",
        "gauge",
        "sequences that wait for a row: an answer or a whole beam search each",
        lambda tally: tally.waiting,
    ),
    Metric("gptport_kv_cache_bytes", "gauge", "memory of the KV cache", lambda tally: tally.cache_bytes),
    Metric(
        "gptport_kv_cache_budget_bytes",
        "gauge",
        "the most that it may take",
        lambda tally: tally.cache_budget,
    ),
    Metric(
        "gptport_prefix_cache_bytes",
        "gauge",
        "memory of what is kept of sequences that have ended",
        lambda tally: tally.prefix_bytes,
    ),
)

# Whoever sees a request counted, or nothing running, sees all that was counted with it.
SHOWN_LAST = ("gptport_requests_total", "gptport_running", "gptport_waiting")
PUBLISH_ORDER = sorted(METRICS, key=lambda metric: metric.name in SHOWN_LAST)


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
        for metric in PUBLISH_ORDER:
            value = metric.read(tally)
            if metric.kind == "histogram":
                self._distribute(metric.name, metric.meaning, value)
            elif metric.kind == "gauge":
                self._show(metric.name, metric.meaning, value)
            elif not metric.label:
                self._count(metric.name, metric.meaning, value)
            else:
                for of, count in value.items():
                    self._count(metric.name, metric.meaning, count, **{metric.label: of})

    def _distribute(self, name: str, description: str, seconds: Seconds) -> None:
        """A histogram as Prometheus reads it."""
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
