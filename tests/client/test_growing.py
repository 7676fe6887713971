"""A step model whose cache grows: the client holds keys and values, and sends them with each request."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

import gptport_client
from gptport_client import AsyncClient, Client, InvalidRequest, ProtocolError, _request_cache
from toy_checks import PATIENCE, expected
from toy_model import MAX_LENGTH, next_logits

PROMPT = "The quick brown 世界"
INPUTS = ("input_ids", "attention_mask", "position_ids")


@pytest.fixture(autouse=True)
def grows(toy):
    toy.grows = INPUTS


@pytest.fixture
def session(client):
    with client.session(transport="request") as session:
        yield session


@pytest.mark.parametrize(
    "inputs",
    [
        INPUTS,
        ("input_ids", "attention_mask"),
        ("input_ids", "position_ids"),
        (*INPUTS, "use_cache_branch"),
        (*INPUTS, "num_logits_to_keep"),
    ],
)
def test_a_session_sends_what_the_graph_takes(client, toy, inputs):
    toy.grows = inputs
    with client.session() as session:
        assert session.append([5, 6]).tolist() == expected(toy, 5, 6)
        assert session.append([7]).tolist() == expected(toy, 5, 6, 7)
        session.rewind(2)
        assert session.append([8]).tolist() == expected(toy, 5, 8)
        assert session.tokens == (5, 8)
        session.rewind(2)
        assert session.append([9]).tolist() == expected(toy, 9)
    assert [step["ids"] for step in toy.steps] == [[5, 6], [7], [8], [9]]


def test_logits_and_caches_may_be_in_half_precision(session, toy):
    toy.cache_datatype = "FP16"
    session.append([5, 6])
    logits = session.append([7])
    wanted = next_logits([5, 6, 7], toy.vocab_size)
    assert logits.dtype == np.float32
    assert logits.tolist() == wanted.astype(np.float16).astype(np.float32).tolist()


def test_a_fork_computes_nothing_again(session, toy):
    session.append([5, 6])
    with session.fork() as fork:
        assert fork.append([7]).tolist() == expected(toy, 5, 6, 7)
        assert session.append([8]).tolist() == expected(toy, 5, 6, 8)
    assert [step["ids"] for step in toy.steps] == [[5, 6], [7], [8]]


def test_a_session_outlives_its_server(client, session, toy):
    session.append([5, 6])
    port = int(toy.url.split(":")[1])
    toy.server.stop(0).wait()
    with pytest.raises(gptport_client.ConnectionError):
        session.append([7])
    assert session.tokens == (5, 6)
    toy.server, _ = toy.serve(port)
    client.wait_until_ready(PATIENCE, loop="client")
    assert session.resume().tolist() == expected(toy, 5, 6)
    assert session.append([7]).tolist() == expected(toy, 5, 6, 7)
    assert [step["ids"] for step in toy.steps] == [[5, 6], [6], [7]]


def test_a_long_prompt_goes_in_pieces_and_is_appended_as_a_whole(session, toy, monkeypatch):
    monkeypatch.setattr(_request_cache, "_LOGITS_BYTES", 4 * 3 * toy.vocab_size)
    assert session.append([5, 6, 7, 8]).tolist() == expected(toy, 5, 6, 7, 8)
    assert [step["ids"] for step in toy.steps] == [[5, 6, 7], [8]]
    toy.grows = (*INPUTS, "num_logits_to_keep")
    with Client(toy.url, model="toy") as other, other.session() as at_once:
        at_once.append([5, 6, 7, 8])
    assert toy.steps[-1]["ids"] == [5, 6, 7, 8]
    toy.grows = INPUTS
    toy.models.discard("toy_step")
    with pytest.raises(gptport_client.ModelNotFound):
        session.append([1, 2, 3, 4])
    assert session.tokens == (5, 6, 7, 8)
    toy.models.add("toy_step")
    assert session.resume().tolist() == expected(toy, 5, 6, 7, 8)
    session.append([5] * (MAX_LENGTH - 4))
    with pytest.raises(InvalidRequest, match="1 tokens do not fit behind 64"):
        session.append([5])


@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}])
def test_both_loops_generate_the_same(client, params):
    answers = [client.generate(PROMPT, max_tokens=12, loop=loop, **params) for loop in ("server", "client")]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].text == answers[1].text


def test_beams_are_forks(client, toy):
    found = client.beam_search([5, 6], beams=3, max_tokens=4)
    toy.grows = ()
    with Client(toy.url, model="toy") as other:
        assert other.beam_search([5, 6], beams=3, max_tokens=4) == found


def test_it_goes_over_http_too(toy, toy_http):
    with Client(toy_http, model="toy") as client, client.session(transport="request") as session:
        assert session.append([5, 6]).tolist() == expected(toy, 5, 6)
        assert session.append([7]).tolist() == expected(toy, 5, 6, 7)


def test_sessions_of_tasks(toy):
    async def main():
        async with (
            AsyncClient(toy.url, model="toy") as client,
            client.session(transport="request") as session,
        ):
            await session.append([5, 6])
            async with session.fork() as fork:
                assert (await fork.append([7])).tolist() == expected(toy, 5, 6, 7)

    asyncio.run(main())


def test_a_transport_that_the_model_does_not_go_with_is_refused(client, toy):
    with client.session(transport="state") as session:
        with pytest.raises(
            InvalidRequest, match="transport is 'state', and 'toy_step' goes with 'request'; give"
        ):
            session.append([5])
        toy.grows = ()
    with (
        Client(toy.url, model="toy") as other,
        other.session(transport="request") as session,
        pytest.raises(InvalidRequest, match="transport is 'request', and 'toy_step' goes with 'state'; give"),
    ):
        session.append([5])


def test_a_cache_of_another_length_is_no_answer(session, monkeypatch):
    session.append([5])
    monkeypatch.setattr("toy_growing.tokens_before", lambda *_: [])
    with pytest.raises(ProtocolError, match=r"bytes of present\.0\.key; 2 tokens have 48"):
        session.append([6])
    assert session.tokens == (5,)


def test_who_asks_for_text_where_there_is_none_is_told_what_there_is(client, toy):
    toy.models.discard("toy")
    with pytest.raises(
        gptport_client.ModelNotFound,
        match=r"'toy' is not found.*; 'toy_step' is served, .* loop='client'.* \[request",
    ):
        client.generate(PROMPT)
    toy.models.clear()
    with pytest.raises(gptport_client.ModelNotFound) as caught:
        client.generate(PROMPT)
    assert "toy_step" not in str(caught.value)
