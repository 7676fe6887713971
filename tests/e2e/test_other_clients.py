"""What clients send that were written for TensorRT-LLM's and vLLM's models on Triton, or know nothing but Triton."""

from __future__ import annotations

import json
import queue
import time
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc as grpc

from in_torch import PROMPTS
from serve_command import PATIENCE

LONG = 1500
ROWS = 32  # the engine's max_batch_size


@pytest.mark.parametrize(
    "others",
    [
        {"bad_words": "", "stop_words": ""},
        {"parameters": {"stream": False, "temperature": 0, "exclude_input_in_output": True}},
    ],
    ids=["TensorRT-LLM", "vLLM"],
)
def test_the_example_of_its_documentation(server, reference, others):
    body = {"text_input": PROMPTS[0], "max_tokens": 8, **others}
    url = f"{server.address.http_url}/v2/models/smollm2/generate"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=PATIENCE) as answer:
        assert json.load(answer)["output_ids"] == reference["smollm2"][PROMPTS[0]][:8]


class Stream:
    """A stream of Triton's own client, with one queue for all that comes."""

    def __init__(self, url: str) -> None:
        self.connection = grpc.InferenceServerClient(url)
        self.answers: queue.Queue = queue.Queue()
        self.connection.start_stream(lambda result, error: self.answers.put((result, error)))

    def ask(self, name: str, text: str, timeout: int | None = None, **numbers: int | bool) -> None:
        inputs = [grpc.InferInput("text_input", [1], "BYTES")]
        inputs[0].set_data_from_numpy(np.array([text.encode()], np.object_))
        for key, value in numbers.items():
            kind = np.bool_ if isinstance(value, bool) else np.int32
            inputs.append(grpc.InferInput(key, [1], "BOOL" if isinstance(value, bool) else "INT32"))
            inputs[-1].set_data_from_numpy(np.array([value], kind))
        self.connection.async_stream_infer("smollm2", inputs, request_id=name, timeout=timeout)

    def take(self) -> grpc.InferResult:
        result, error = self.answers.get(timeout=120)
        assert error is None
        return result

    def close(self) -> None:
        self.connection.stop_stream(cancel_requests=True)
        self.connection.close()


@pytest.fixture
def stream(server):
    opened = []

    def start() -> Stream:
        opened.append(Stream(server.address.grpc_url))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_tritons_own_timeout_ends_the_answer(stream):
    asking = stream()
    began = time.monotonic()
    asking.ask("a", "Once upon a time", timeout=500_000, max_tokens=LONG, ignore_eos=True)
    assert asking.take().as_numpy("finish_reason").tolist() == [b"timeout"]
    assert time.monotonic() - began >= 0.5


def test_of_those_that_wait_the_smallest_priority_runs_first(stream, gauge, becomes):
    """One request takes all rows; when the others wait, it goes. Each of them takes all rows, too."""
    becomes(0, gauge, "running")
    first, others = stream(), stream()
    first.ask("first", "Once upon a time", max_tokens=LONG, ignore_eos=True, n=ROWS, stream=True)
    first.take()
    priorities = [5, 0, -(2**31), 5, 2**31 - 1, 0]
    for number, priority in enumerate(priorities):
        others.ask(str(number), "Hello", max_tokens=2, ignore_eos=True, n=ROWS, priority=priority)
    becomes(len(priorities) * ROWS, gauge, "waiting")
    first.close()
    ended = [int(others.take().get_response().id) for _ in priorities]
    expected = sorted(range(len(priorities)), key=lambda number: (priorities[number], number))
    assert ended == expected
    becomes(0, gauge, "running")
