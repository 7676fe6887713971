"""HTTP carries what gRPC carries: streams, sequences, errors, cancellation, deadlines, headers and TLS."""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

import gptport_client
from gptport_client import (
    TLS,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    Retry,
    SequenceLost,
    ServerError,
)
from gptport_client._http_wire import read_event, read_infer
from toy_checks import PATIENCE, close_while_it_is_read
from toy_http import serve_http

PROMPT = "The quick brown 世界"


@pytest.fixture
def http(toy_http):
    with Client(toy_http, model="toy") as client:
        yield client


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
@pytest.mark.parametrize("loop", ["server", "client"])
def test_the_same_seed_gives_the_same_text_as_over_grpc(http, client, loop, seed):
    arguments = {"temperature": 0.9, "top_p": 0.9, "top_k": 30, "seed": seed, "max_tokens": 20, "stop": ["x"]}
    over_http, over_grpc = (each.generate(PROMPT, loop=loop, **arguments) for each in (http, client))
    assert (over_http.token_ids, over_http.text, over_http.usage) == (
        over_grpc.token_ids,
        over_grpc.text,
        over_grpc.usage,
    )


def test_connections_are_used_again(http, toy):
    for _ in range(3):
        http.generate(PROMPT, max_tokens=3)
        http.generate(PROMPT, max_tokens=3, loop="client")
    assert len(http._transport._connections._idle) == 1
    assert not toy.sequences


def test_a_connection_that_the_server_closed_is_made_anew(http):
    http.generate(PROMPT, max_tokens=1)
    http._transport._connections._idle[0].sock.shutdown(2)
    assert http.generate(PROMPT, max_tokens=1).token_ids


@pytest.mark.parametrize("leave", ["close", "with", "drop"])
def test_leaving_a_stream_cancels_on_the_server(http, toy, leave):
    toy.delay, toy.eos_token_ids = 0.2, ""
    stream = http.stream(PROMPT, max_tokens=50)
    next(stream)
    if leave == "close":
        stream.close()
    elif leave == "with":
        with stream:
            pass
    else:
        del stream
    assert toy.cancelled.wait(PATIENCE)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_closing_from_another_thread_ends_the_wait(http, toy, loop):
    toy.delay = PATIENCE
    stream = http.stream(PROMPT, loop=loop)
    close_while_it_is_read(stream, toy)
    with pytest.raises(Cancelled):
        list(stream)


def test_cancelling_the_task_ends_the_thread(toy, toy_http):
    toy.delay, toy.eos_token_ids = 0.2, ""

    async def main():
        async with AsyncClient(toy_http, model="toy") as client:
            task = asyncio.create_task(client.generate(PROMPT, max_tokens=50))
            while not toy.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert toy.cancelled.wait(PATIENCE)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_the_timeout_is_for_everything(http, toy, loop):
    toy.delay, toy.eos_token_ids = 0.1, ""
    with pytest.raises(DeadlineExceeded):
        http.generate(PROMPT, max_tokens=50, loop=loop, timeout=0.5)


def test_many_threads_share_a_client(http):
    prompts = [f"{number} {PROMPT}" for number in range(24)]
    loops = ["server", "client"] * 12
    expected = [http.generate(prompt, max_tokens=6).text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        found = pool.map(
            lambda prompt, loop: http.generate(prompt, max_tokens=6, loop=loop).text, prompts, loops
        )
        assert list(found) == expected


@pytest.mark.parametrize("loop", ["server", "client"])
def test_errors_are_typed(http, toy_http, loop):
    with Client(toy_http, model="nix") as other, pytest.raises(ModelNotFound, match="nix"):
        other.generate(PROMPT, loop=loop)
    with (
        Client("http://127.0.0.1:1", model="toy", retry=Retry(0)) as other,
        pytest.raises(gptport_client.ConnectionError, match="8000"),
    ):
        other.generate(PROMPT, loop=loop)
    with pytest.raises(InvalidRequest, match="tokens"):
        http.generate([5] * 80, loop=loop)


def test_an_error_on_the_way_is_typed_after_its_text(http, toy):
    toy.error_after = (1, "CUDA out of memory")
    with pytest.raises(ServerError, match="out of memory"):
        http.generate(PROMPT)
    toy.error_after = (0, "Exceeds maximum queue size")
    with pytest.raises(QueueFull):
        http.generate(PROMPT)


def test_a_lost_sequence_is_typed(http, toy):
    with http.session() as session:
        session.append([5, 6])
        toy.sequences.clear()
        with pytest.raises(SequenceLost):
            session.append([7])
        session.resume()


def test_closing_waits_for_the_end_of_sequences(toy, toy_http):
    toy.eos_token_ids = ""
    with Client(toy_http, model="toy") as client:
        next(client.stream(PROMPT, loop="client"))
    assert not toy.sequences
    with pytest.raises(InvalidRequest, match="closed"):
        client.generate(PROMPT)


def test_headers_go_along(toy, toy_http):
    with Client(toy_http, model="toy", headers={"Authorization": "Bearer abc"}) as client:
        client.generate(PROMPT, max_tokens=1)
    assert toy.http_headers["authorization"] == "Bearer abc"


def test_a_connection_may_be_encrypted(toy, certificate):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = serve_http(toy, context)
    url = f"https://127.0.0.1:{server.server_port}"
    with Client(url, model="toy", tls=TLS(ca=cert)) as client:
        assert client.generate(PROMPT, max_tokens=2).token_ids
    with Client(url, model="toy", retry=Retry(0)) as client, pytest.raises(gptport_client.ConnectionError):
        client.generate(PROMPT)  # the system does not know this certificate
    server.shutdown()
    server.server_close()


def test_what_is_not_tritons_is_a_protocol_error():
    for body in (b"<html>", b"{}", b'{"outputs": [{}]}', b'{"outputs": 3}'):
        with pytest.raises(ProtocolError):
            read_infer(body, len(body))
    for event in ({"text_output": 3}, {"output_ids": "a"}, {"num_input_tokens": "x"}):
        with pytest.raises(ProtocolError):
            read_event(event)
