"""The client's loop over memory that it shares with the real Triton: the tokens of all other ways, and nothing is left there."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gptport.cli import main
from gptport.server import running
from gptport_client import AsyncClient, Client, GptportError, SequenceLost
from gptport_client._cuda_region import CudaRegistration

MODEL = "gpt2-tiny"
PROMPT = "Alice was beginning to get very tired"


@pytest.fixture(scope="module")
def repository(checkpoints, tmp_path_factory):
    """The text model and both step models."""
    folder = tmp_path_factory.mktemp("repository")
    options = ["--repository", str(folder), "--name", MODEL, "--step-cache", "both"]
    assert main(["export", str(checkpoints[MODEL]), *options]) == 0
    return folder


@pytest.fixture(scope="module")
def server(repository):
    with running(repository) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def url(server, request):
    return server.address.grpc_url if request.param == "grpc" else server.address.http_url


def continued(session, ids, count):
    """Greedy tokens, and the logits behind them."""
    logits, found = session.append(ids), []
    for _ in range(count):
        found.append(int(logits.argmax()))
        logits = session.append(found[-1:])
    return found, logits


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}])
def test_both_loops_give_the_same_tokens(url, params):
    with Client(url, model=MODEL) as client:
        answers = [
            client.generate(PROMPT, max_tokens=90, ignore_eos=True, loop=loop, **params).token_ids
            for loop in ("server", "client")
        ]
    assert len(answers[0]) == 90
    assert answers[0] == answers[1]


def test_both_transports_give_the_same_logits_also_after_a_rewind_and_a_fork(url):
    with Client(url, model=MODEL) as client:
        ids, found = client.tokenize(PROMPT), []
        for transport in ("state", "shared_memory"):
            with client.session(transport=transport) as session:
                tokens, logits = continued(session, ids, 80)
                with session.fork() as fork:
                    session.rewind(5)
                    rewound, forked = session.append([7]), fork.append([9])
            found.append((tokens, logits, rewound, forked))
        assert found[0][0] == found[1][0]
        for state, shared in zip(found[0][1:], found[1][1:], strict=True):
            np.testing.assert_allclose(shared, state, atol=1e-4)


def test_nothing_is_left_mapped(url, server):
    with Client(url, model=MODEL) as client:
        sessions = [client.session(transport="shared_memory") for _ in range(3)]
        for session in sessions:
            session.append([5, 6])
        sessions[0].close()
        assert client.beam_search(PROMPT, beams=3, max_tokens=5)

    async def ask():
        async with AsyncClient(url, model=MODEL) as client:
            await asyncio.gather(*(client.generate(PROMPT, max_tokens=8, loop="client") for _ in range(8)))
            await client.session(transport="shared_memory").append([5])

    asyncio.run(ask())
    with Client(server.address.grpc_url, model=MODEL) as client:
        assert client._transport.regions(5) == []


def test_the_servers_extension_for_gpus_takes_the_requests(url):
    """There is no GPU, so CUDA cannot open the handle; that Triton says no more than this shows that the request is right."""
    with Client(url, model=MODEL) as client:
        transport = client._transport
        assert transport.regions(5, cuda=True) == []
        with pytest.raises(GptportError, match="failed to register shared memory region: invalid args"):
            transport.register(CudaRegistration("gptportcuda-1", bytes(64), 0, 2 << 20), 5)


def test_a_session_resumes_after_a_restart_and_computes_nothing_anew(repository):
    with running(repository) as first:
        client = Client(first.address.grpc_url, model=MODEL)
        session = client.session(transport="shared_memory")
        before, _ = continued(session, client.tokenize(PROMPT), 20)
        address = first.address
    with running(repository, address=address), client:
        client.wait_until_ready(30, loop="client")
        with pytest.raises(SequenceLost, match="restarted"):
            session.append(before[-1:])
        confirmed = session.tokens
        sent = []
        infer = client._transport.infer
        client._transport.infer = lambda request, timeout: sent.append(request) or infer(request, timeout)
        logits = session.resume()
        assert [list(tensor.shape) for tensor in sent[0].inputs if tensor.name == "input_ids"] == [[1, 1]]
        with client.session(transport="state") as other:
            np.testing.assert_allclose(logits, other.append(confirmed), atol=1e-4)
