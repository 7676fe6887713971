"""What Triton's metrics endpoint shows of the engine is what clients see, counted: each metric of docs/metrics.md."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gptport.server import running
from gptport_backend.metrics import BOUNDS, METRICS
from gptport_client import Client
from serve_command import PATIENCE

MODEL = "gpt2-tiny"
LONG = "a prompt that is long enough to be kept and looked for, again and again; "
REQUESTS = "gptport_requests_total"
BUDGET = 1_000_000  # for two and a half sequences
PARAMETER = '\nparameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'


@pytest.fixture(scope="module")
def asked(repository, tmp_path_factory):
    """A client of a server that nobody else uses, whose memory is short."""
    folder = tmp_path_factory.mktemp("metrics")
    model = shutil.copytree(repository / MODEL, folder / MODEL)
    with (model / "config.pbtxt").open("a") as config:
        config.write(PARAMETER.format("kv_cache_bytes", BUDGET))
    with (
        running(folder, [MODEL]) as server,
        Client(server.address.grpc_url, model=MODEL, metrics_url=server.address.metrics_url) as client,
    ):
        while not client.metrics().total(REQUESTS, model=MODEL):  # Triton's own, of the warm-up
            time.sleep(0.05)
        yield client


class Since:
    """By how much the counters have grown once `requests` more have ended; gauges as they are then."""

    def __init__(self, client: Client, requests: int) -> None:
        self._client = client
        self._before = client.metrics()
        self._requests = self._before.total(REQUESTS, model=MODEL) + requests

    def __enter__(self):
        return self

    def __exit__(self, *failed):
        end = time.monotonic() + PATIENCE
        self._after = self._client.metrics()
        while not any(failed) and not self._at_rest():
            assert time.monotonic() < end, "the engine never came to rest"
            time.sleep(0.05)
            self._after = self._client.metrics()

    def _at_rest(self) -> bool:
        """Whether all have ended; who sees their number sees all that was counted with them."""
        ended = self._after.total(REQUESTS, model=MODEL)
        assert ended <= self._requests
        busy = sum(self._after.total(f"gptport_{name}", model=MODEL) for name in ("running", "waiting"))
        return ended == self._requests and not busy

    def __call__(self, name: str, **labels: str) -> float:
        name, labels = f"gptport_{name}", {"model": MODEL, **labels}
        return self._after.total(name, **labels) - self._before.total(name, **labels)


def test_every_metric_is_there_with_its_meaning(asked):
    with Since(asked, requests=1):
        asked.generate("hello", max_tokens=2)
    shown = {sample.name for sample in asked.metrics().samples}
    for metric in METRICS:
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            assert metric.name + suffix in shown
    budget = asked.metrics().total("gptport_kv_cache_budget_bytes", model=MODEL)
    assert budget == BUDGET


def test_tokens_answers_and_durations(asked):
    began = time.monotonic()
    with Since(asked, requests=3) as grown:
        results = [
            asked.generate("hello there", max_tokens=12, ignore_eos=True),
            *asked.samples("how are you", n=3, max_tokens=9, ignore_eos=True, temperature=1.0, seed=1),
            asked.generate("hello", max_tokens=1),
        ]
    seconds = time.monotonic() - began
    prompts = sum(result.usage.prompt_tokens for result in results)
    tokens = sum(len(result.token_ids) for result in results)
    assert grown("input_tokens_total") + grown("prefix_hit_tokens_total") == prompts
    assert grown("output_tokens_total") == tokens
    assert (grown("requests_total"), grown("answers_total", finish_reason="length")) == (3, 5)
    assert grown("time_to_first_token_seconds_count") == 5
    assert grown("inter_token_seconds_count") == tokens - 5
    assert grown("request_seconds_count") == 3
    assert 0 < grown("request_seconds_sum") < seconds
    assert 0 < grown("time_to_first_token_seconds_sum") < 5 * seconds
    assert 0 < grown("inter_token_seconds_sum") < 3 * seconds
    for name in ("time_to_first_token", "inter_token", "request"):
        buckets = [grown(f"{name}_seconds_bucket", le=bound) for bound in (*map(str, BOUNDS), "+Inf")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == grown(f"{name}_seconds_count")
    parts = {part: grown("step_seconds_total", part=part) for part in ("prefill", "decode", "sample")}
    assert all(0 < each < seconds for each in parts.values())


def test_prefix_hits_are_the_tokens_that_were_not_computed(asked):
    ids = asked.tokenize(LONG)
    with Since(asked, requests=1):
        asked.generate(LONG, max_tokens=2)
    with Since(asked, requests=1) as grown:
        result = asked.generate(ids, max_tokens=2)
    assert result.usage.prompt_tokens == len(ids)
    assert (grown("prefix_hit_tokens_total"), grown("input_tokens_total")) == (len(ids) - 1, 1)
    assert asked.metrics().total("gptport_prefix_cache_bytes", model=MODEL) > 0


def test_guesses(asked):
    with Since(asked, requests=1) as grown:
        asked.generate(
            "one two three " * 4,
            max_tokens=60,
            ignore_eos=True,
            prompt_lookup=8,
            choice=["one two three " * 8],
        )
    assert grown("guessed_tokens_total") >= grown("right_guesses_total") > 0


def test_how_requests_end(asked):
    with Since(asked, requests=2) as grown:
        stream = asked.stream(LONG, max_tokens=150, ignore_eos=True, n=100)
        next(stream)
        stream.close()
        asked.generate("hello", max_tokens=20, stop=["e"], logit_bias={asked.tokenize("e")[0]: 1000.0})
    ends = [grown("requests_total", finish_reason=reason) for reason in ("cancelled", "stop")]
    assert (ends, grown("requests_total")) == ([1, 1], 2)


def test_the_load_while_it_runs(asked):
    seen = []

    def generate(number: int) -> int:
        return len(asked.generate(f"number {number}", max_tokens=240, ignore_eos=True).token_ids)

    with Since(asked, requests=16) as grown, ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(generate, number) for number in range(16)]
        while not all(answer.done() for answer in answers):
            now = asked.metrics()
            names = ("running", "waiting", "batch_size", "kv_cache_bytes")
            seen.append([now.total(f"gptport_{name}", model=MODEL) for name in names])
            time.sleep(0.02)
    assert grown("output_tokens_total") == sum(answer.result() for answer in answers) == 16 * 240
    most_running, most_waiting, largest_batch, memory = (max(values) for values in zip(*seen, strict=True))
    assert (most_running, largest_batch) == (2, 2)  # so many does the memory hold
    assert 1 <= most_waiting <= 14
    assert BUDGET / 2 < memory <= BUDGET
