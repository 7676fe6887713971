"""Many clients at once: right answers, nobody starves, and who leaves makes room."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from in_torch import PROMPTS

CLIENTS = 16
TOKENS = 48


def test_sixteen_clients_get_right_answers_and_none_starves(client, reference):
    all_there = threading.Barrier(CLIENTS)

    def generate(number: int) -> tuple[list[int], float, float]:
        ids, first = [], 0.0
        all_there.wait()
        for chunk in client().stream(PROMPTS[number % len(PROMPTS)], max_tokens=TOKENS):
            first = first or time.monotonic()
            ids.extend(chunk.token_ids)
        return ids, first, time.monotonic()

    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(generate, range(CLIENTS)))
    for number, (ids, _, _) in enumerate(results):
        assert ids == reference["smollm2"][PROMPTS[number % len(PROMPTS)]][:TOKENS]
    last_first = max(first for _, first, _ in results)
    first_last = min(last for ids, _, last in results if len(ids) == TOKENS)
    assert last_first < first_last, "one began only when another had ended"


def test_cancelling_half_frees_their_slots(client, gauge, becomes):
    becomes(0, gauge, "running")
    cancelled = gauge("requests_total", reason="cancelled")
    streams = [client().stream(prompt, max_tokens=1500) for prompt in [PROMPTS[2]] * CLIENTS]
    for stream in streams:
        next(stream)
    becomes(CLIENTS, gauge, "running")
    for stream in streams[: CLIENTS // 2]:
        stream.close()
    becomes(CLIENTS // 2, gauge, "running")
    for stream in streams[CLIENTS // 2 :]:
        assert next(stream).finish_reason is None
        stream.close()
    becomes(0, gauge, "running")
    assert gauge("waiting") == 0
    becomes(cancelled + CLIENTS, gauge, "requests_total", "smollm2", "cancelled")


def test_more_clients_than_slots_are_all_answered(client, reference, gauge, becomes):
    connection = client("gpt2-tiny")
    with ThreadPoolExecutor(80) as pool:
        results = list(pool.map(lambda _: connection.generate(PROMPTS[0], max_tokens=16), range(80)))
    assert {result.token_ids for result in results} == {tuple(reference["gpt2-tiny"][PROMPTS[0]][:16])}
    becomes(0, gauge, "running", "gpt2-tiny")


ASKS = """
import sys
from gptport_client import Client

with Client(sys.argv[1], model="smollm2") as client:
    list(client.stream("Once upon a time", max_tokens=1500, ignore_eos=True, timeout=300))
"""


@pytest.mark.parametrize("protocol", ["grpc_url", "http_url"])
def test_a_client_that_is_killed_frees_its_slot_long_before_its_timeout(server, gauge, becomes, protocol):
    becomes(0, gauge, "running")
    cancelled = gauge("requests_total", reason="cancelled")
    client = subprocess.Popen([sys.executable, "-c", ASKS, getattr(server.address, protocol)])
    try:
        becomes(1, gauge, "running")
    finally:
        client.kill()
        client.wait()
    becomes(0, gauge, "running")
    becomes(0, gauge, "waiting")
    becomes(cancelled + 1, gauge, "requests_total", "smollm2", "cancelled")
