"""The client against a server that speaks the protocol: both loops, cancellation, errors, readiness."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tritonclient.grpc import service_pb2

import gptport_client
from gptport_client import (
    Cancelled,
    Chunk,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerNotReady,
    Stream,
    Usage,
)
from toy_checks import PATIENCE, close_while_it_is_read
from toy_wire import read_inputs, text_response

PROMPT = "The quick brown 世界"
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 2**64 - 1}


@pytest.mark.parametrize("loop", ["server", "client"])
@pytest.mark.parametrize("sampling", [{}, SAMPLED])
def test_a_stream_put_together_is_the_result(client, loop, sampling):
    result = client.generate(PROMPT, max_tokens=30, loop=loop, **sampling)
    chunks = list(client.stream(PROMPT, max_tokens=30, loop=loop, **sampling))
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == result.finish_reason
    assert chunks[-1].usage == result.usage
    assert result.usage.completion_tokens == len(result.token_ids)
    assert 0 < result.timings.time_to_first_token <= result.timings.total
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = ""


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}, SAMPLED])
def test_both_loops_give_the_same(client, sampling, seed):
    arguments = {**sampling, "seed": seed, "max_tokens": 40, "stop": ["x", " th"]}
    prompt = f"{seed} {PROMPT}"
    server, own = (client.generate(prompt, loop=loop, **arguments) for loop in ("server", "client"))
    assert (own.token_ids, own.text, own.finish_reason, own.usage) == (
        server.token_ids,
        server.text,
        server.finish_reason,
        server.usage,
    )


@pytest.mark.parametrize("loop", ["server", "client"])
def test_a_prompt_may_be_token_ids(client, toy, loop):
    ids = toy.tokenizer.encode(PROMPT).ids
    assert client.generate(ids, max_tokens=8, loop=loop).text == client.generate(PROMPT, max_tokens=8).text


@pytest.mark.parametrize("loop", ["server", "client"])
def test_the_model_length_ends_a_text(client, toy, loop):
    toy.eos_token_ids = ""
    result = client.generate(PROMPT, max_tokens=10_000, loop=loop)
    assert result.finish_reason == "length"
    assert result.usage.prompt_tokens + result.usage.completion_tokens == 64


@pytest.mark.parametrize("loop", ["server", "client"])
def test_a_prompt_longer_than_the_model_names_both_numbers(client, loop):
    with pytest.raises(InvalidRequest, match=r"80 tokens.*63"):
        client.generate([5] * 80, loop=loop)


def test_the_final_flag_may_come_alone(client, toy):
    expected = client.generate(PROMPT, max_tokens=5)
    toy.separate_final = True
    assert client.generate(PROMPT, max_tokens=5).text == expected.text


def test_every_request_has_an_id_of_its_own(client, toy):
    results = [client.generate(PROMPT, max_tokens=2) for _ in range(3)]
    assert [request.id for request in toy.requests] == [result.request_id for result in results]
    assert len({result.request_id for result in results}) == 3


@pytest.mark.parametrize("leave", ["break", "close", "with", "drop"])
def test_leaving_a_stream_cancels_on_the_server(client, toy, leave):
    toy.delay, toy.eos_token_ids = 0.2, ""
    stream = client.stream(PROMPT, max_tokens=50)
    if leave == "with":
        with stream:
            next(stream)
    else:
        next(stream)
    if leave == "break":
        for _ in stream:
            break
        del stream
    elif leave == "close":
        stream.close()
    elif leave == "drop":
        del stream
    assert toy.cancelled.wait(PATIENCE)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_closing_from_another_thread_ends_the_wait(client, toy, loop):
    toy.delay = PATIENCE
    stream = client.stream(PROMPT, loop=loop)
    close_while_it_is_read(stream, toy)
    with pytest.raises(Cancelled):
        list(stream)


def test_who_reads_while_another_thread_closes_finds_the_end():
    closing, go_on = threading.Event(), threading.Event()

    class Slow:
        request_id = ""

        def pieces(self):
            try:
                yield Chunk("a", (1,))
            finally:
                closing.set()
                go_on.wait(PATIENCE)

        def cancel(self):
            pass

    stream = Stream(Slow())
    next(stream)
    with ThreadPoolExecutor(2) as pool:
        closed = pool.submit(stream.close)
        assert closing.wait(PATIENCE)
        rest = pool.submit(list, stream)
        threading.Timer(0.1, go_on.set).start()
        assert (closed.result(), rest.result()) == (None, [])


def test_a_killed_server_is_a_connection_error():
    server = Path(__file__).parent / "toy_triton.py"
    for loop in ("server", "client"):
        with (
            subprocess.Popen([sys.executable, server], stdout=subprocess.PIPE, text=True) as process,
            Client(f"127.0.0.1:{int(process.stdout.readline())}", model="toy") as client,
        ):
            stream = client.stream(PROMPT, loop=loop)
            next(stream)
            process.kill()
            with pytest.raises(gptport_client.ConnectionError, match=f"127.0.0.1.*{stream.request_id}"):
                list(stream)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_nobody_there_is_a_connection_error(loop):
    with (
        Client("127.0.0.1:1", model="toy") as client,
        pytest.raises(gptport_client.ConnectionError, match="8001"),
    ):
        client.generate(PROMPT, loop=loop)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_the_timeout_is_for_everything(client, toy, loop):
    toy.delay, toy.eos_token_ids = 0.1, ""
    with pytest.raises(DeadlineExceeded):
        client.generate(PROMPT, max_tokens=50, loop=loop, timeout=0.5)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_an_unknown_model_is_named(toy, loop):
    with Client(toy.url, model="nix") as client, pytest.raises(ModelNotFound, match="nix"):
        client.generate(PROMPT, loop=loop)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("max_tokens is 0; it must be 1 or more", InvalidRequest),
        ("the prompt has 70 tokens; toy takes at most 63", InvalidRequest),
        ("[request id: 7] Exceeds maximum queue size", QueueFull),
        ("in ensemble, CUDA out of memory", ServerError),
        ("Failed to process the request(s) for model 'toy', message: KeyError: 'seed'", ServerError),
        ("request was cancelled", Cancelled),
        ("Server is shutting down, not ready for inference", ServerNotReady),
    ],
)
def test_an_error_in_the_stream_is_typed_after_its_text(client, toy, text, error):
    toy.error_after = (1, text)
    stream = client.stream(PROMPT)
    assert next(stream).token_ids
    with pytest.raises(error, match=stream.request_id) as caught:
        list(stream)
    assert text in str(caught.value)
    assert caught.value.request_id == stream.request_id


def test_an_answer_without_a_finish_reason_is_a_protocol_error(client, toy):
    toy.no_finish_reason = True
    with pytest.raises(ProtocolError, match="finish reason"):
        client.generate(PROMPT, max_tokens=3)


def test_many_threads_share_a_client(client):
    prompts = [f"{number} {PROMPT}" for number in range(24)]
    loops = ["server", "client"] * 12
    expected = [client.generate(prompt, max_tokens=6).text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        found = pool.map(
            lambda prompt, loop: client.generate(prompt, max_tokens=6, loop=loop).text, prompts, loops
        )
        assert list(found) == expected


def test_a_closed_client_says_so(toy):
    client = Client(toy.url, model="toy")
    client.close()
    client.close()
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate(PROMPT)


def test_models_lists_the_repository(client):
    assert [(model.name, model.ready, model.reason) for model in client.models()] == [
        ("toy", True, ""),
        ("toy_step", True, ""),
        ("broken", False, "no such file"),
    ]


def test_waiting_until_ready(client, toy):
    toy.ready = False
    threading.Timer(0.3, lambda: setattr(toy, "ready", True)).start()
    client.wait_until_ready(PATIENCE)
    toy.models.remove("toy")
    client.wait_until_ready(PATIENCE, loop="client")
    with pytest.raises(ServerNotReady, match=r"0\.3 s: (the model is loading|no answer yet)"):
        client.wait_until_ready(0.3)


def test_waiting_for_a_server_that_starts_later(toy):
    with Client(toy.url, model="toy") as client:
        toy.server.stop(0).wait()
        started = []
        threading.Timer(0.5, lambda: started.append(toy.serve(int(toy.url.split(":")[1])))).start()
        client.wait_until_ready(PATIENCE)
    started[0][0].stop(0).wait()


class ScriptedTransport:
    """Answers every stream with the same responses; no server, no connection."""

    url = "nowhere"

    def __init__(self, *responses):
        self.responses = iter(responses)
        self.requests, self.cancelled, self.closed = [], False, False

    def stream(self, request, timeout):
        self.requests.append((request, timeout))
        return self

    def read(self):
        return next(self.responses, None)

    def cancel(self):
        self.cancelled = True

    def close(self):
        self.closed = True


def test_a_transport_can_be_given():
    request = service_pb2.ModelInferRequest()
    transport = ScriptedTransport(
        text_response(request, b"one ", (1,), "", 4, 1, final=False).infer_response,
        text_response(request, b"two", (2, 3), "stop", 4, 3, final=True).infer_response,
    )
    with Client(model="toy", transport=transport) as client:
        result = client.generate("a", timeout=PATIENCE)
    assert (result.text, result.token_ids, result.usage) == ("one two", (1, 2, 3), Usage(4, 3))
    assert transport.closed
    assert 0 < transport.requests[0][1] <= PATIENCE


@pytest.mark.parametrize("separate", [False, True])
def test_samples_are_what_their_seeds_give(client, toy, separate):
    toy.separate_final = separate
    options = {"max_tokens": 9, "temperature": 0.9, "stop": ["e"]}
    found = client.samples("The quick", n=3, seed=2**64 - 2, **options)
    expected = [client.generate("The quick", seed=seed, **options) for seed in (2**64 - 2, 2**64 - 1, 0)]
    assert [(each.text, each.token_ids) for each in found] == [
        (each.text, each.token_ids) for each in expected
    ]
    assert len({each.text for each in found}) == 3
    stream = client.stream("The quick", n=3, seed=2**64 - 2, **options)
    assert {chunk.index for chunk in stream} == {0, 1, 2}
    assert [each.text for each in stream.results] == [each.text for each in found]
    assert stream.result == stream.results[0]
    assert sum("n" in {tensor.name for tensor in request.inputs} for request in toy.requests) == 2


def test_samples_are_as_good_over_http(toy_http, client):
    with Client(toy_http, model="toy") as over_http:
        options = {"n": 2, "max_tokens": 9, "temperature": 0.9, "seed": 1}
        found, expected = (asking.samples("The quick", **options) for asking in (over_http, client))
        assert [each.text for each in found] == [each.text for each in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "n is 0"), ({"n": 129}, "n is 129"), ({"n": 2, "loop": "client"}, "n is 2")],
)
def test_how_many_is_checked(client, toy, options, message):
    with pytest.raises(InvalidRequest, match=message):
        client.stream("a", **options)
    assert not toy.requests


def test_the_time_limit_is_the_servers_too(client, toy):
    client.generate(PROMPT, max_tokens=2, timeout=60)
    (sent,) = read_inputs(toy.requests[-1])["timeout"]
    assert 0 < sent <= 60
    client.generate(PROMPT, max_tokens=2)
    assert "timeout" not in read_inputs(toy.requests[-1])


def test_tokens_are_text_again(client):
    assert client.detokenize(client.tokenize(PROMPT)) == PROMPT
