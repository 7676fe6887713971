"""Sessions in memory that client and server share: the logits of any session, and nothing of it is left."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import gptport_client
from gptport_client import AsyncClient, Client, InvalidRequest, ModelNotFound, SequenceLost
from gptport_client._region import new_name
from gptport_client._releases import Releases
from toy_checks import PATIENCE, eventually, expected
from toy_model import MAX_LENGTH

PROMPT = "The quick brown 世界"


@pytest.fixture(autouse=True)
def kv(toy):
    toy.models.add("toy_kv")


@pytest.fixture
def session(client):
    with client.session(transport="shared_memory") as session:
        yield session


def in_the_file_system():
    return list(Path("/dev/shm").glob(f"gptport-*-{os.getpid()}-*"))


def test_append_gives_the_logits_behind_all_tokens(session, toy):
    assert session.append([5, 6]).tolist() == expected(toy, 5, 6)
    assert session.append([7]).tolist() == expected(toy, 5, 6, 7)
    assert not toy.sequences
    assert len(toy.mapped) == 1
    assert not in_the_file_system()  # a client that is killed leaves nothing there


def test_a_region_grows_with_its_sequence(client, toy):
    toy.max_length = 512
    with client.session(transport="shared_memory") as session:
        ids = []
        for count in (3, 60, 1, 1, 200, 247):
            new = list(range(1, count + 1))
            ids += new
            assert session.append(new).tolist() == expected(toy, *ids)
        session.rewind(500)
        assert session.append([9]).tolist() == expected(toy, *ids[:12], 9)
    assert eventually(lambda: not toy.mapped)


def test_there_is_no_room_beyond_the_models_length(session):
    session.append([5] * MAX_LENGTH)
    with pytest.raises(InvalidRequest, match="1 tokens do not fit behind 64"):
        session.append([5])


def test_a_fork_computes_nothing_again(session, toy):
    session.append([5, 6])
    with session.fork() as fork:
        fork.rewind(1)
        assert fork.append([7]).tolist() == expected(toy, 5, 7)
        assert session.append([8]).tolist() == expected(toy, 5, 6, 8)
    assert [step["ids"] for step in toy.steps] == [[5, 6], [7], [8]]


def test_a_session_resumes_on_a_server_that_was_started_again_and_computes_nothing_anew(client, session, toy):
    session.append([5, 6, 7])
    port = int(toy.url.split(":")[1])
    toy.server.stop(0).wait()
    toy.mapped.clear()
    toy.server, _ = toy.serve(port)
    client.wait_until_ready(PATIENCE, loop="client")
    with pytest.raises(SequenceLost, match="restarted") as caught:
        session.append([8])
    assert caught.value.confirmed == 3
    toy.steps.clear()
    assert session.resume().tolist() == expected(toy, 5, 6, 7)
    assert session.append([8]).tolist() == expected(toy, 5, 6, 7, 8)
    assert [step["ids"] for step in toy.steps] == [[7], [8]]


def test_a_step_that_took_too_long_is_resumed_in_another_region(session, toy):
    session.append([5, 6])
    (before,) = toy.mapped
    toy.delay = 0.5
    with pytest.raises(gptport_client.DeadlineExceeded):
        session.append([7], timeout=0.1)
    toy.delay = 0.0
    assert session.resume().tolist() == expected(toy, 5, 6)
    assert eventually(lambda: before not in toy.mapped)
    assert session.append([8]).tolist() == expected(toy, 5, 6, 8)


@pytest.mark.parametrize("in_use", [0, 2])
def test_closing_the_client_gives_all_up(toy, in_use):
    with Client(toy.url, model="toy") as client:
        client.session(transport="shared_memory").append([5])
        kept = client.session(transport="shared_memory")
        kept.append([5])
        toy.in_use = in_use
    assert not toy.mapped


def test_a_session_that_nobody_closed_is_given_up(client, toy):
    client.session(transport="shared_memory").append([5])
    gc.collect()
    assert eventually(lambda: not toy.mapped)


def test_a_process_that_ends_without_closing_gives_all_up(toy):
    program = (
        "from gptport_client import Client; "
        f"client = Client({toy.url!r}, model='toy'); "
        "session = client.session(transport='shared_memory'); session.append([5])"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)
    assert not toy.mapped


ENDED = """
import asyncio, gc, sys
from gptport_client import AsyncClient
async def main():
    client = AsyncClient(sys.argv[1], model="toy")
    session = client.session(transport="shared_memory")
    await session.append([5])
    return client, session
kept = asyncio.run(main())
if sys.argv[2] == "goes on":
    kept = None
    gc.collect()
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["ends", "goes on"])
def test_tasks_that_ended_without_closing_leave_nothing_mapped(toy, how):
    """The event loop is closed, and the process ends or goes on without the client."""
    command = [sys.executable, "-c", ENDED, toy.url, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert eventually(lambda: toy.steps)
        assert eventually(lambda: not toy.mapped)
        assert process.poll() is None or how == "ends"
        _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (0, "")


def test_a_region_may_be_released_wherever_the_garbage_collector_runs():
    """Also while a thread pool, or a queue, holds the lock that others of its kind need."""
    given_up = []
    releases = Releases(lambda name, _: given_up.append(name))
    releases.hold("region")
    with concurrent.futures.thread._global_shutdown_lock, threading._active_limbo_lock:
        releases.release("region")
        assert eventually(lambda: given_up == ["region"])


def test_a_forked_process_gives_nothing_up():
    asked = []
    releases = Releases(lambda name, _: asked.append(name))
    releases.hold("region")
    if not (child := os.fork()):
        releases.close()
        os._exit(len(asked))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    releases.close()
    assert asked == ["region"]


def test_what_a_killed_client_left_mapped_goes_with_the_next_session(session, toy):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = new_name().replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    another = new_name()  # of a process that lives
    toy.mapped |= {left: np.zeros(1), another: np.zeros(1), "somebody's": np.zeros(1)}
    session.append([5])
    assert eventually(lambda: left not in toy.mapped)
    assert {another, "somebody's"} < set(toy.mapped)


def test_both_loops_and_both_transports_give_the_same(client, toy):
    options = {"temperature": 0.9, "seed": 7, "max_tokens": 20}
    server = client.generate(PROMPT, **options)
    shared = client.generate(PROMPT, loop="client", **options)
    assert not any("sequence" in step for step in toy.steps)
    toy.models.remove("toy_kv")
    state = client.generate(PROMPT, loop="client", **options)
    assert server.token_ids == shared.token_ids == state.token_ids
    assert "sequence" in toy.steps[-1]


ASKED = {
    "generate": lambda client, **how: client.generate(PROMPT, max_tokens=4, **how),
    "stream": lambda client, **how: list(client.stream(PROMPT, max_tokens=4, **how)),
    "chat": lambda client, **how: client.chat([{"role": "user", "content": "世界?"}], max_tokens=4, **how),
    "many": lambda client, **how: list(client.generate_many([PROMPT], max_tokens=4, **how)),
    "beam search": lambda client, **how: client.beam_search(PROMPT, beams=2, max_tokens=4, **how),
    "score": lambda client, **how: client.score(PROMPT, **how),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_every_loop_here_goes_over_the_transport_that_is_asked_for(client, toy, ask):
    with Client(toy.url, model="toy") as other:  # closing it waits for what ends its sequences
        ask(other, loop="client", transport="state")
    assert all("sequence" in step for step in toy.steps)
    steps = len(toy.steps)
    ask(client, loop="client", transport="shared_memory")
    assert not any("sequence" in step for step in toy.steps[steps:])
    assert len(toy.steps) > steps
    with pytest.raises(InvalidRequest, match=r"transport is 'state', which is for the client's own loop"):
        ask(client, loop="server", transport="state")


def test_beam_search_over_shared_memory(client, toy):
    shared = client.beam_search(PROMPT, beams=3, max_tokens=6)
    toy.models.remove("toy_kv")
    assert client.beam_search(PROMPT, beams=3, max_tokens=6) == shared
    assert eventually(lambda: not toy.mapped)


class TestWhereItCannotBe:
    REFUSAL = "failed to register shared memory region: Unable to open shared memory region"

    def test_the_model_is_not_served(self, session, toy):
        toy.models.remove("toy_kv")
        with pytest.raises(
            ModelNotFound, match=r"needs 'toy_kv', which .* does not serve: export with --step-cache"
        ):
            session.append([5])

    def test_the_server_is_on_another_machine(self, session, toy):
        toy.refusal = self.REFUSAL
        with pytest.raises(InvalidRequest, match=r"memory cannot be shared with .*this machine"):
            session.append([5])
        toy.refusal = ""
        assert session.append([5]).tolist() == expected(toy, 5)

    def test_auto_takes_the_state(self, client, toy):
        toy.refusal = self.REFUSAL
        with client.session() as session:
            assert session.append([5]).tolist() == expected(toy, 5)
        assert "sequence" in toy.steps[0]

    def test_auto_says_why_if_there_is_no_other_way(self, client, toy):
        toy.refusal = self.REFUSAL
        toy.models.remove("toy_step")
        with client.session() as session, pytest.raises(InvalidRequest, match="memory cannot be shared"):
            session.append([5])

    def test_there_is_no_room(self, client, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        with (
            client.session(transport="shared_memory") as session,
            pytest.raises(InvalidRequest, match=r"no shared memory for 64 tokens.*No space left"),
        ):
            session.append([5])
        assert client.generate(PROMPT, loop="client", max_tokens=3).token_ids  # over the state

    def test_a_wrong_choice_is_refused(self, client):
        with pytest.raises(
            InvalidRequest, match="transport is 'tcp'; give one of 'auto', 'state', 'shared_memory', 'cuda_"
        ):
            client.session(transport="tcp")


def test_sessions_of_tasks(toy):
    async def main():
        async with AsyncClient(toy.url, model="toy") as client:
            session = client.session(transport="shared_memory")
            await session.append([5, 6])
            async with session.fork() as fork:
                assert (await fork.append([7])).tolist() == expected(toy, 5, 6, 7)
            toy.mapped.clear()
            with pytest.raises(SequenceLost):
                await session.append([8])
            assert (await session.resume()).tolist() == expected(toy, 5, 6)
            toy.in_use = 1
        assert not toy.mapped

    asyncio.run(main())


def test_a_task_that_was_cancelled_keeps_its_tokens(toy):
    async def main():
        async with AsyncClient(toy.url, model="toy") as client:
            session = client.session(transport="shared_memory")
            await session.append([5, 6, 7])
            toy.delay = 0.5
            for step in (lambda: session.append([8]), session.resume):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(step(), 0.1)
                assert session.tokens == (5, 6, 7)
                with pytest.raises(InvalidRequest, match="resume"):
                    await session.append([8])
            toy.delay = 0.0
            assert (await session.resume()).tolist() == expected(toy, 5, 6, 7)

    asyncio.run(main())
