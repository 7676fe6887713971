"""docker/haproxy.cfg, as it is, before two real Tritons on addresses of this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
import urllib.request

import psutil
import pytest

import gptport_client
from gptport.address import Address
from gptport.server import running
from gptport_client import Client
from names import NameServer

pytestmark = pytest.mark.e2e
MODEL, PROMPT = "gpt2-tiny", [5, 6, 7]
PATIENCE = 20.0  # seconds after which a test calls it a hang


@pytest.fixture
def hosts():
    """Addresses of this machine that nobody else uses: of the proxy, and of two servers. All listen on the same ports."""
    network = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}"
    return [f"{network}.{last}" for last in (2, 3, 4)]


@pytest.fixture
def servers(hosts, filled):
    with contextlib.ExitStack() as stack:
        addresses = [Address(host, 8000, 8001, 8002) for host in hosts[1:]]
        yield [stack.enter_context(running(filled, address=address)) for address in addresses]


@pytest.fixture
def proxy(needs, root, hosts, servers):
    """The gRPC address of HAProxy, which finds the servers by their name."""
    haproxy = needs("haproxy")
    names = NameServer([server.address.host for server in servers])
    environment = {"GPTPORT_DNS": names.address, "GPTPORT_LISTEN": hosts[0]}
    process = subprocess.Popen([haproxy, "-db", "-f", root / "docker/haproxy.cfg"], env=environment)
    url = f"http://{hosts[0]}:8000/v2/health/ready"
    try:
        until(lambda: answers(url))
        with Client(f"{hosts[0]}:8001", model=MODEL) as client:
            client.wait_until_ready(timeout=PATIENCE)
            until(lambda: both_asked(client, servers))
        yield f"{hosts[0]}:8001"
    finally:
        process.terminate()
        process.wait()
        names.close()


def until(condition, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


def finished(server) -> float:
    """Requests that a server has answered."""
    with urllib.request.urlopen(server.address.metrics_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("gptport_requests_total{"))


def both_asked(client, servers) -> bool:
    client.generate(PROMPT, max_tokens=1, timeout=PATIENCE)
    return all(finished(server) for server in servers)


def test_one_connection_reaches_both_servers(proxy, servers):
    before = [finished(server) for server in servers]
    with Client(proxy, model=MODEL) as client:
        texts = {client.generate(PROMPT, max_tokens=8).text for _ in range(24)}
    assert len(texts) == 1
    time.sleep(1)  # the metrics are published twice a second
    asked = [finished(server) - then for server, then in zip(servers, before, strict=True)]
    assert min(asked) > 0
    assert sum(asked) == 24


def test_a_sequence_stays_on_one_server(proxy, servers):
    with Client(servers[0].address.grpc_url, model=MODEL) as client, client.session() as session:
        expected = [session.append([token]).tolist() for token in (5, 6, 7)]
    with Client(proxy, model=MODEL) as client, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(client.session()) for _ in range(12)]
        for token, logits in zip((5, 6, 7), expected, strict=True):
            assert [session.append([token]).tolist() for session in sessions] == [logits] * 12


def test_a_server_killed_under_load(proxy, servers):
    """New requests go on; sequences and streams on the dead server end with a typed error; nothing hangs."""
    outcomes: list[object] = []
    done = threading.Event()

    def ask() -> None:
        with Client(proxy, model=MODEL) as client:
            while not done.is_set():
                outcomes.append(outcome(lambda: client.generate(PROMPT, max_tokens=4, timeout=PATIENCE).text))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    with Client(proxy, model=MODEL) as client, contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(client.session()) for _ in range(24)]
        for session in sessions:
            session.append([5], timeout=PATIENCE)
        for thread in asking:
            thread.start()
        time.sleep(1)
        os.kill(servers[0].pid, signal.SIGKILL)
        steps = [outcome(lambda one=one: one.append([6], timeout=PATIENCE).tolist()) for one in sessions]
        after = [
            outcome(lambda: client.generate(PROMPT, max_tokens=4, timeout=PATIENCE).text) for _ in range(8)
        ]
        lost = [one for one, step in zip(sessions, steps, strict=True) if isinstance(step, Exception)]
        resumed = [outcome(lambda one=one: one.resume(timeout=PATIENCE).tolist()) for one in lost]
        time.sleep(1)
        done.set()
        for thread in asking:
            thread.join(PATIENCE)
    assert not [thread for thread in asking if thread.is_alive()]

    errors = [step for step in steps if isinstance(step, Exception)]
    assert 0 < len(errors) < len(steps)  # some were there, some were not
    allowed = (gptport_client.SequenceLost, gptport_client.ConnectionError)
    assert not [error for error in errors if not isinstance(error, allowed)]
    assert not [step for step in resumed if isinstance(step, Exception)]
    assert len(set(after)) == 1
    failures = [each for each in outcomes if isinstance(each, Exception)]
    assert not [error for error in failures if not isinstance(error, gptport_client.ConnectionError)]
    assert len(failures) <= len(asking)  # what ran on the server when it died, and nothing after it
    assert len(outcomes) > 8 * len(asking)


def outcome(function):
    """What a call gives, or the error of the client that it raises; anything else is a failure of the test."""
    try:
        return function()
    except gptport_client.GptportError as error:
        return error


def test_a_stream_on_a_server_that_dies_ends_with_an_error(proxy, servers):
    with Client(proxy, model=MODEL) as client:
        backends = [child for server in servers for child in psutil.Process(server.pid).children()]
        # The model is so small that a few would be done before it is killed, even with its backend suspended next.
        first, *_, last = [client.stream(PROMPT, max_tokens=100_000, timeout=PATIENCE) for _ in range(96)]
        next(first)
        for backend in backends:
            backend.suspend()
        for server in servers:
            os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(gptport_client.ConnectionError):
            list(last)


def test_a_server_that_comes_back_is_used_again(proxy, servers, filled):
    address = servers[0].address
    servers[0].kill()
    with Client(proxy, model=MODEL) as client:
        client.generate(PROMPT, max_tokens=1, timeout=PATIENCE)
        with running(filled, address=address) as again:
            until(lambda: both_asked(client, [again, servers[1]]))
