"""A server that dies in the middle of a stream is an error of the client, not a hang."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest

import gptport_client
from gptport.server import running
from gptport_client import Client

SECONDS = 8


@pytest.mark.parametrize("loop", ["server", "client"])
def test_killing_the_server(repository, loop):
    with (
        running(repository, ["smollm2"]) as server,
        Client(server.address.grpc_url, model="smollm2") as client,
    ):
        stream = client.stream("Once upon a time", max_tokens=1500, loop=loop)
        next(stream)
        os.kill(server.pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(gptport_client.ConnectionError):
            list(stream)
        assert time.monotonic() - killed < SECONDS


def test_killing_the_backends_process(repository):
    """Triton itself lives on; the request it lost must not be waited for without an end."""
    with (
        running(repository, ["smollm2"]) as server,
        Client(server.address.grpc_url, model="smollm2") as client,
    ):
        stream = client.stream("Once upon a time", max_tokens=1500, timeout=SECONDS)
        next(stream)
        for process in psutil.Process(server.pid).children():
            process.kill()
        killed = time.monotonic()
        with pytest.raises(gptport_client.GptportError):
            list(stream)
        assert time.monotonic() - killed < SECONDS + 1
