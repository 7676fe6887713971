"""A server that dies in the middle of a stream is an error of the client, not a hang."""

from __future__ import annotations

import os
import re
import signal
import urllib.request

import psutil
import pytest

import gptport_client
from gptport.server import running
from gptport_client import Client
from serve_command import gone

SECONDS = 20  # in which one token comes, on a slow machine too


@pytest.mark.parametrize("loop", ["server", "client"])
def test_killing_the_server(repository, loop):
    with (
        running(repository, ["smollm2"]) as server,
        Client(server.address.grpc_url, model="smollm2") as client,
    ):
        stream = client.stream("Once upon a time", max_tokens=1500, loop=loop)
        next(stream)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(gptport_client.ConnectionError):
            list(stream)


def kill_backend(server_pid: int) -> None:
    for process in psutil.Process(server_pid).children(recursive=True):
        if any("/smollm2/1/" in argument for argument in process.cmdline()):
            process.kill()


def test_killing_the_backends_process(repository):
    """Triton itself lives on; the request it lost must not be waited for without an end."""
    with (
        running(repository, ["smollm2"]) as server,
        Client(server.address.grpc_url, model="smollm2") as client,
    ):
        stream = client.stream("Once upon a time", max_tokens=1500, timeout=SECONDS)
        next(stream)
        kill_backend(server.pid)
        with pytest.raises(gptport_client.GptportError):
            list(stream)
        server.kill()  # it would wait for what it lost


def test_the_command_notices_it_and_ends_so_that_nobody_waits(command, repository):
    server = command(repository, "--model=smollm2", "--drain=1")
    server.wait_until_ready()
    with Client(server.address.grpc_url, model="smollm2") as client:
        stream = client.stream("Once upon a time", max_tokens=1500)
        next(stream)
        kill_backend(server.process.pid)
        with pytest.raises(gptport_client.ConnectionError):
            list(stream)
    code, said = server.end()
    assert code == 1
    # Triton may crash because of it before the command looks.
    assert re.search(
        r"the process of smollm2 has ended by itself: signal 9|tritonserver has ended by itself", said
    )
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{server.address.http_url}/v2/health/ready", timeout=5)


def test_a_stream_that_takes_longer_than_the_drain_ends_soon_after_it(command, repository):
    server = command(repository, "--model=smollm2", "--drain=1")
    processes = server.wait_until_ready()
    with Client(server.address.grpc_url, model="smollm2") as client:
        stream = client.stream("Once upon a time", max_tokens=1500)
        next(stream)
        server.process.terminate()
        with pytest.raises(gptport_client.ConnectionError):
            list(stream)
    assert server.end()[0] == 0
    assert gone(processes)
    assert server.leftovers() == []
