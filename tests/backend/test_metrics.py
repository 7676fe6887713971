"""What the engine counts reaches Triton as counters that only grow, and gauges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gptport_backend import metrics
from gptport_backend.metrics import BOUNDS, METRICS, Seconds, Tally, TritonPublisher

if TYPE_CHECKING:
    import pytest

SHOWN: dict[tuple[str, str], float] = {}


class Family:
    """Triton's MetricFamily, as the python backend offers it."""

    COUNTER, GAUGE = "counter", "gauge"

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802 - Triton's name
        key = (self.name, labels.get("finish_reason", labels.get("le", labels.get("part", ""))))
        SHOWN[key] = 0

        def increment(value: float) -> None:
            assert self.kind == "counter"
            assert value > 0
            SHOWN[key] += value

        def set_(value: float) -> None:
            assert self.kind == "gauge"
            SHOWN[key] = value

        return SimpleNamespace(increment=increment, set=set_)


def test_counts_are_published_as_differences_and_at_rest_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "time", SimpleNamespace(monotonic=lambda: 100.0))  # it stands still
    publisher = TritonPublisher(SimpleNamespace(MetricFamily=Family), "tiny")
    tally = Tally(input_tokens=10, output_tokens=4, running=2)
    publisher.publish(tally)
    tally.output_tokens = 9
    publisher.publish(tally)  # too soon after the first
    assert SHOWN["gptport_output_tokens_total", ""] == 4
    tally.running = 0
    tally.requests["length"] += 2
    publisher.publish(tally)
    assert SHOWN["gptport_input_tokens_total", ""] == 10
    assert SHOWN["gptport_output_tokens_total", ""] == 9
    assert SHOWN["gptport_requests_total", "length"] == 2
    assert SHOWN["gptport_running", ""] == 0


def test_who_sees_a_request_counted_or_nothing_running_sees_all_that_was_counted() -> None:
    SHOWN.clear()
    tally = Tally(output_tokens=3, running=1, waiting=1)
    tally.answers["stop"] = tally.requests["stop"] = 1
    TritonPublisher(SimpleNamespace(MetricFamily=Family), "tiny").publish(tally)
    last = [name for name, _ in SHOWN][-3:]
    assert last == ["gptport_requests_total", "gptport_running", "gptport_waiting"]


def test_durations_are_a_histogram_as_prometheus_reads_it() -> None:
    publisher = TritonPublisher(SimpleNamespace(MetricFamily=Family), "tiny")
    tally = Tally()
    for seconds in (0.001, 0.005, 0.3, 1000.0):
        tally.request.observe(seconds)
    publisher.publish(tally)
    name = "gptport_request_seconds"
    buckets = {label: count for (metric, label), count in SHOWN.items() if metric == f"{name}_bucket"}
    assert list(buckets) == [*map(str, BOUNDS), "+Inf"]
    assert (buckets["0.005"], buckets["0.2"], buckets["0.5"], buckets["100.0"]) == (2, 2, 3, 3)
    assert buckets["+Inf"] == SHOWN[f"{name}_count", ""] == 4
    assert SHOWN[f"{name}_sum", ""] == 1000.306


def test_nothing_observed_is_nothing_counted() -> None:
    assert sum(Seconds().counts) == 0


def test_the_parts_of_a_step_add_up() -> None:
    publisher = TritonPublisher(SimpleNamespace(MetricFamily=Family), "tiny")
    tally = Tally()
    for _ in range(2):
        with tally.timed("sample"):
            pass
    publisher.publish(tally)
    assert SHOWN["gptport_step_seconds_total", "sample"] == tally.parts["sample"] > 0


def test_each_metric_is_a_count_of_its_own() -> None:
    publisher = TritonPublisher(SimpleNamespace(MetricFamily=Family), "tiny")
    tally = Tally()
    counted = [name for name, value in vars(tally).items() if isinstance(value, int)]
    for number, name in enumerate(counted, 1):
        setattr(tally, name, number)
    for number, histogram in enumerate((tally.first_token, tally.next_token, tally.request), 30):
        histogram.observe(float(number))
    publisher.publish(tally)
    shown = {name: value for (name, label), value in SHOWN.items() if not label}
    expected = {
        "gptport_input_tokens_total": tally.input_tokens,
        "gptport_prefix_hit_tokens_total": tally.reused_tokens,
        "gptport_output_tokens_total": tally.output_tokens,
        "gptport_guessed_tokens_total": tally.guessed_tokens,
        "gptport_right_guesses_total": tally.right_guesses,
        "gptport_preemptions_total": tally.preemptions,
        "gptport_batch_size": tally.batch_size,
        "gptport_running": tally.running,
        "gptport_waiting": tally.waiting,
        "gptport_kv_cache_bytes": tally.cache_bytes,
        "gptport_kv_cache_budget_bytes": tally.cache_budget,
        "gptport_prefix_cache_bytes": tally.prefix_bytes,
    }
    assert {name: shown[name] for name in expected} == expected
    assert (
        len(expected)
        == len(counted)
        == sum(not metric.label and metric.kind != "histogram" for metric in METRICS)
    )
    sums = [
        shown[f"gptport_{name}_seconds_sum"] for name in ("time_to_first_token", "inter_token", "request")
    ]
    assert sums == [30, 31, 32]
