"""Sessions in memory of a GPU, with tritonclient's own code over a CUDA that has host memory. No GPU has run this."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from gptport_client import AsyncClient, Client, InvalidRequest, ModelNotFound, SequenceLost
from gptport_client._cuda_region import CudaRegistration
from gptport_client._http import HttpTransport
from toy_checks import eventually, expected
from toy_cuda import ToyCuda

PROMPT = "The quick brown 世界"
BLOCK = 2 << 20


@pytest.fixture(autouse=True)
def kv(toy):
    toy.models.add("toy_kv")
    toy.gpu = 3


@pytest.fixture
def cuda(toy, monkeypatch):
    """A CUDA, that client and server have; nothing may be left of it, nor may it be freed under the server."""
    toy.cuda = ToyCuda()
    toy.cuda.install(monkeypatch)
    yield toy.cuda
    gc.collect()
    assert not toy.mapped
    assert not toy.cuda.allocated
    assert not toy.cuda.freed_too_early


@pytest.fixture
def client(request, toy):
    if "cuda" in request.fixturenames:
        request.getfixturevalue("cuda")  # it ends after the client
    with Client(toy.url, model="toy") as client:
        yield client


def test_append_gives_the_logits_behind_all_tokens(client, cuda, toy):
    with client.session(transport="cuda_shared_memory") as session:
        assert session.append([5, 6]).tolist() == expected(toy, 5, 6)
        assert session.append([7]).tolist() == expected(toy, 5, 6, 7)
        assert not toy.sequences
        (name,) = toy.mapped
        assert name.startswith("gptportcuda-")
        assert [memory.nbytes for memory in cuda.allocated.values()] == [BLOCK]  # CUDA shares whole blocks
    assert eventually(lambda: not toy.mapped and not cuda.allocated)


def test_a_region_grows_with_its_sequence(client, cuda, toy):
    toy.max_length = 512
    with client.session(transport="cuda_shared_memory") as session:
        ids = []
        for count in (3, 60, 1, 200, 248):
            ids += range(1, count + 1)
            assert session.append(ids[-count:]).tolist() == expected(toy, *ids)
    assert eventually(lambda: not cuda.allocated)


def test_a_fork_computes_nothing_again(client, cuda, toy):
    with client.session(transport="cuda_shared_memory") as session:
        session.append([5, 6])
        with session.fork() as fork:
            fork.rewind(1)
            assert fork.append([7]).tolist() == expected(toy, 5, 7)
            assert session.append([8]).tolist() == expected(toy, 5, 6, 8)
    assert [step["ids"] for step in toy.steps] == [[5, 6], [7], [8]]
    assert cuda.allocated.keys() >= cuda.open


def test_a_lost_session_computes_nothing_anew(client, cuda, toy):
    with client.session(transport="cuda_shared_memory") as session:
        session.append([5, 6, 7])
        for memory in toy.mapped.values():
            cuda.closed(memory)
        toy.mapped.clear()  # the server was started again
        with pytest.raises(SequenceLost, match="restarted"):
            session.append([8])
        toy.steps.clear()
        assert session.resume().tolist() == expected(toy, 5, 6, 7)
        assert [step["ids"] for step in toy.steps] == [[7]]


@pytest.mark.parametrize("in_use", [0, 2])
def test_closing_the_client_frees_what_the_server_gave_up(toy, cuda, in_use):
    with Client(toy.url, model="toy") as client:
        client.session(transport="cuda_shared_memory").append([5])
        kept = client.session(transport="cuda_shared_memory")
        kept.append([5])
        toy.in_use = in_use
    assert not toy.mapped
    assert not cuda.open


def test_sessions_of_tasks(toy, cuda):
    async def main():
        async with AsyncClient(toy.url, model="toy") as client:
            session = client.session(transport="cuda_shared_memory")
            await session.append([5, 6])
            async with session.fork() as fork:
                assert (await fork.append([7])).tolist() == expected(toy, 5, 6, 7)
            toy.in_use = 1

    asyncio.run(main())
    assert not toy.mapped
    assert not cuda.open


@pytest.mark.usefixtures("cuda")
def test_auto_takes_it_and_gives_the_tokens_of_the_servers_loop(client, toy):
    options = {"temperature": 0.9, "seed": 7, "max_tokens": 20}
    here = client.generate(PROMPT, loop="client", **options)
    assert here.token_ids == client.generate(PROMPT, **options).token_ids
    assert toy.steps
    assert not any("sequence" in step for step in toy.steps)


class TestWhereItCannotBe:
    def test_cudas_packages_are_missing(self, client, toy):
        with (
            client.session(transport="cuda_shared_memory") as session,
            pytest.raises(
                InvalidRequest, match=r"No module named 'cuda'.*pip install 'tritonclient\[cuda\]'"
            ),
        ):
            session.append([5])
        assert client.generate(PROMPT, loop="client", max_tokens=3).token_ids
        assert all("sequence" in step for step in toy.steps)  # auto: over the state

    @pytest.mark.usefixtures("cuda")
    def test_the_model_runs_on_a_cpu(self, client, toy):
        toy.gpu = None
        with (
            client.session(transport="cuda_shared_memory") as session,
            pytest.raises(InvalidRequest, match=r"'toy_kv' runs on a CPU.*'shared_memory'"),
        ):
            session.append([5])

    @pytest.mark.usefixtures("cuda")
    def test_the_model_is_not_served(self, client, toy):
        toy.models.remove("toy_kv")
        with (
            client.session(transport="cuda_shared_memory") as session,
            pytest.raises(ModelNotFound, match="transport='cuda_shared_memory' needs 'toy_kv'"),
        ):
            session.append([5])

    @pytest.mark.usefixtures("cuda")
    def test_the_server_is_on_another_machine(self, client, toy):
        toy.refusal = "failed to register CUDA shared memory region: failed to open CUDA IPC handle"
        with (
            client.session(transport="cuda_shared_memory") as session,
            pytest.raises(InvalidRequest, match=r"memory of GPU 3 cannot be shared with .*same GPU"),
        ):
            session.append([5])
        with client.session() as session:
            assert session.append([5]).tolist() == expected(toy, 5)
        assert "sequence" in toy.steps[0]

    def test_there_is_no_room(self, client, cuda):
        cuda.room = 0
        with (
            client.session(transport="cuda_shared_memory") as session,
            pytest.raises(
                InvalidRequest,
                match=r"no shared memory for 64 tokens.*GPU 3.*MemoryAllocation",
            ),
        ):
            session.append([5])
        cuda.room = 1 << 28


def test_the_requests_over_http_are_as_tritons_extension_has_them(monkeypatch):
    sent = []

    def answer(_, method, path, *rest):
        sent.append((method, path, json.loads(rest[2]) if len(rest) > 2 else None))
        return {}, b'[{"name": "gptportcuda-1"}]'

    monkeypatch.setattr(HttpTransport, "_checked", answer)
    with Client("http://localhost:1", model="toy") as client:
        transport = client._transport
        transport.register(CudaRegistration("gptportcuda-1", b"\x00\xff" * 32, 3, BLOCK), 1)
        assert transport.regions(1, cuda=True) == ["gptportcuda-1"]
    handle = {
        "b64": "AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/w=="
    }
    region = "/v2/cudasharedmemory/region/gptportcuda-1"
    assert sent == [
        ("POST", f"{region}/register", {"raw_handle": handle, "device_id": 3, "byte_size": BLOCK}),
        ("GET", "/v2/cudasharedmemory/status", None),
        ("POST", f"{region}/unregister", None),
    ]
