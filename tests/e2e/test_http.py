"""Triton's generate endpoints: one answer, or server-sent events; wrong requests get a 4xx."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from in_torch import NEW_TOKENS, PROMPTS
from serve_command import PATIENCE


@pytest.fixture
def post(server):
    def ask(path: str, body: dict | bytes, model: str = "smollm2") -> str:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{server.address.http_url}/v2/models/{model}/{path}", data)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.read().decode()

    return ask


def test_generate(post, reference):
    answer = json.loads(post("generate", {"id": "mine", "text_input": PROMPTS[0], "max_tokens": NEW_TOKENS}))
    assert answer["output_ids"] == reference["smollm2"][PROMPTS[0]]
    assert "Paris" in answer["text_output"]
    assert answer["num_output_tokens"] == len(answer["output_ids"])


def test_generate_stream(post, reference):
    body = {"text_input": PROMPTS[0], "max_tokens": NEW_TOKENS, "stream": True}
    lines = post("generate_stream", body).splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    ids = []
    for event in events:
        found = event.get("output_ids", [])
        ids += found if isinstance(found, list) else [found]
    assert ids == reference["smollm2"][PROMPTS[0]]
    assert len(events) > 10
    assert "Paris" in "".join(event["text_output"] for event in events)
    assert events[-1]["finish_reason"] in ("stop", "length")


def test_several_answers_in_one_response(post):
    body = {"text_input": PROMPTS[1], "max_tokens": 12, "temperature": 1.0, "stop_words": ["e"]}
    answer = json.loads(post("generate", {**body, "seed": 7, "n": 3}))
    alone = [json.loads(post("generate", {**body, "seed": 7 + index})) for index in range(3)]
    assert answer["index"] == [0, 1, 2]
    for name in ("text_output", "finish_reason", "num_output_tokens"):
        assert answer[name] == [each[name] for each in alone]
    ids = [each["output_ids"] for each in alone]
    assert answer["output_ids"] == [
        token for each in ids for token in (each if isinstance(each, list) else [each])
    ]


def test_parameters_and_stop_words(post):
    body = {
        "text_input": "1, 2, 3, 4, 5,",
        "max_tokens": 40,
        "stop_words": [" 9"],
        "exclude_input_in_output": False,
    }
    answer = json.loads(post("generate", body))
    assert answer["text_output"] == "1, 2, 3, 4, 5, 6, 7, 8,"
    assert answer["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text_input": "Hello", "max_tokens": -5}, "max_tokens"),
        ({"text_input": "Hello", "top_p": 2}, "top_p"),
        ({"text_input": "Hello", "temperature": -1}, "temperature"),
        ({"text_input": ""}, "text_input"),
        ({"max_tokens": 5}, "text_input"),
        ({"text_input": "hello " * 3000}, "2048"),
        ({"text_input": "Hello", "colours": [1, 2]}, "colours"),
        ({"text_input": "Hello", "max_token": 5}, "max_token is not an input"),
        (b'{"text_input": "Hello", "caf\xe9": 1}', "UTF-8"),
        (b'{"text_input": "caf\xe9"}', ""),
    ],
)
def test_a_wrong_request_is_a_4xx_that_says_what_is_wrong(post, body, message):
    with pytest.raises(urllib.error.HTTPError) as error:
        post("generate", body)
    assert 400 <= error.value.code < 500
    assert message in error.value.read().decode()


@pytest.mark.parametrize("body", [{"text_input": 5}, {"text_input": "Hello", "max_tokens": "five"}, b"{"])
def test_what_triton_cannot_read_never_reaches_the_backend(post, body):
    with pytest.raises(urllib.error.HTTPError) as error:
        post("generate", body)
    assert error.value.code in (400, 500)  # Triton 2.51 says 500
    assert "error" in json.loads(error.value.read())


def test_a_stream_that_is_dropped_frees_its_slot(server, gauge, becomes):
    becomes(0, gauge, "running")
    cancelled = gauge("requests_total", reason="cancelled")
    body = json.dumps({"text_input": PROMPTS[2], "max_tokens": 1500, "stream": True}).encode()
    request = urllib.request.Request(f"{server.address.http_url}/v2/models/smollm2/generate_stream", body)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        answer.readline()
        becomes(1, gauge, "running")
    becomes(0, gauge, "running")
    becomes(cancelled + 1, gauge, "requests_total", "smollm2", "cancelled")
