"""What is sent again, and what never is; what goes along with each request."""

from __future__ import annotations

import grpc
import pytest

import gptport_client
from gptport_client import TLS, Client, InvalidRequest, QueueFull, Retry

PROMPT = "The quick brown 世界"
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")


def test_a_request_that_was_refused_for_now_is_sent_again(toy):
    with Client(toy.url, model="toy", retry=Retry(2, first_pause=0.01)) as client:
        expected = client.generate(PROMPT, max_tokens=3).text
        toy.refusals = [FULL, (grpc.StatusCode.UNAVAILABLE, "Socket closed")]
        assert client.generate(PROMPT, max_tokens=3).text == expected
        toy.refusals = [FULL] * 3
        with pytest.raises(QueueFull):
            client.generate(PROMPT)


def test_a_wrong_request_is_not_sent_again(toy):
    toy.refusals = [FULL, (grpc.StatusCode.INVALID_ARGUMENT, "no")]
    with Client(toy.url, model="toy") as client, pytest.raises(InvalidRequest):
        client.generate(PROMPT)
    assert toy.refusals == [FULL]


def test_a_stream_is_never_replayed(client, toy):
    toy.error_after = (1, "Exceeds maximum queue size")
    with pytest.raises(QueueFull):
        client.generate(PROMPT)
    assert len(toy.requests) == 1


def test_a_pause_that_the_timeout_does_not_allow_is_not_made(toy):
    toy.refusals = [FULL] * 2
    retry = Retry(2, first_pause=60, longest_pause=60)
    with Client(toy.url, model="toy", retry=retry) as client, pytest.raises(QueueFull):
        client.generate(PROMPT, timeout=5)
    assert toy.refusals == [FULL]


def test_pauses_grow_and_end():
    pauses = list(Retry(5, first_pause=1.0, longest_pause=4.0).pauses())
    assert [0.7 * 2**n < pause <= 1.3 * 2**n for n, pause in enumerate(pauses[:2])] == [True, True]
    assert max(pauses) <= 4.0
    assert len(pauses) == 5


def test_headers_go_along(toy):
    with Client(toy.url, model="toy", headers={"Authorization": "Bearer abc"}) as client:
        client.generate(PROMPT, max_tokens=1)
    assert toy.metadata["authorization"] == "Bearer abc"


@pytest.mark.parametrize("headers", [{"a b": "c"}, {"a": "ü"}, {"a": "b\n"}, {"a": 1}, {"": "b"}])
def test_headers_that_cannot_be_sent_are_refused(headers):
    with pytest.raises(InvalidRequest, match="headers"):
        Client(model="toy", headers=headers)


def test_a_connection_may_be_encrypted(toy, certificate):
    cert, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    server, port = toy.serve(credentials=credentials)
    try:
        with Client(f"grpcs://127.0.0.1:{port}", model="toy", tls=TLS(ca=cert)) as client:
            assert client.generate(PROMPT, max_tokens=1).token_ids
        with (
            Client(f"grpcs://127.0.0.1:{port}", model="toy", retry=Retry(0)) as client,
            pytest.raises(gptport_client.ConnectionError),
        ):
            client.generate(PROMPT)  # the system does not know this certificate
    finally:
        server.stop(0).wait()


def test_half_a_certificate_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="certificate and key"):
        TLS(certificate=tmp_path)
    with pytest.raises(InvalidRequest, match="cannot be read"):
        Client("grpcs://localhost", model="toy", tls=TLS(ca=tmp_path / "none.pem"))
