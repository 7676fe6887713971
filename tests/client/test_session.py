"""Sessions: the logits of any continuation, whatever was rewound, forked, lost and resumed before; processors and scores."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest

import gptport_client
from gptport_client import AsyncClient, InvalidRequest, SequenceLost
from toy_checks import PATIENCE, expected
from toy_model import MAX_LENGTH, next_logits

PROMPT = "The quick brown 世界"


@pytest.fixture
def session(client):
    with client.session() as session:
        yield session


def test_append_gives_the_logits_behind_all_tokens(session, toy):
    assert session.append([5, 6]).tolist() == expected(toy, 5, 6)
    assert session.append([7]).tolist() == expected(toy, 5, 6, 7)
    assert session.tokens == (5, 6, 7)
    assert [(step["start"], step["end"]) for step in toy.steps] == [(True, False), (False, False)]


def test_a_proxy_can_tell_the_sequence_by_a_header(session, toy):
    session.append([5])
    (sequence,) = toy.sequences
    assert toy.metadata["gptport-sequence"] == str(sequence)


def test_the_header_goes_along_with_asyncio_and_with_others(toy):
    async def append():
        async with (
            AsyncClient(toy.url, model="toy", headers={"x-key": "k"}) as client,
            client.session() as session,
        ):
            await session.append([5])
            return next(iter(toy.sequences))

    sequence = asyncio.run(append())
    assert (toy.metadata["gptport-sequence"], toy.metadata["x-key"]) == (str(sequence), "k")


def test_rewinding_forgets_and_sends_nothing(session, toy):
    session.append([5, 6, 7])
    session.rewind(2)
    assert (session.tokens, len(toy.steps)) == ((5,), 1)
    assert session.append([8]).tolist() == expected(toy, 5, 8)
    session.rewind(2)
    assert session.append([9]).tolist() == expected(toy, 9)
    with pytest.raises(InvalidRequest, match="count is 2; give an integer from 0 to 1"):
        session.rewind(2)


def test_a_fork_goes_its_own_way(session, toy):
    session.append([5, 6])
    with session.fork() as fork:
        assert fork.tokens == (5, 6)
        fork.rewind(1)
        assert fork.append([7]).tolist() == expected(toy, 5, 7)
        assert session.append([8]).tolist() == expected(toy, 5, 6, 8)
        assert len(toy.sequences) == 2


def test_closing_frees_the_sequence(client, toy):
    with client.session() as session:
        session.append([5])
        assert toy.sequences
    session.close()
    client.close()
    assert not toy.sequences


def test_a_session_that_never_began_sends_nothing(client, toy):
    with client.session():
        pass
    assert not toy.steps


def test_a_lost_sequence_says_how_much_was_confirmed_and_resumes(session, toy):
    session.append([5, 6, 7])
    toy.sequences.clear()
    with pytest.raises(SequenceLost, match="after 3 tokens") as caught:
        session.append([8])
    assert caught.value.confirmed == 3
    with pytest.raises(InvalidRequest, match="resume"):
        session.append([8])
    assert session.resume().tolist() == expected(toy, 5, 6, 7)
    assert session.append([8]).tolist() == expected(toy, 5, 6, 7, 8)


def test_a_resume_that_was_out_of_time_has_to_be_done_again(session, toy):
    session.append([5, 6])
    toy.sequences.clear()
    with pytest.raises(SequenceLost):
        session.append([7])
    with pytest.raises(gptport_client.DeadlineExceeded):
        session.resume(timeout=1e-9)
    with pytest.raises(InvalidRequest, match="resume"):
        session.append([7])
    assert session.resume().tolist() == expected(toy, 5, 6)


def test_a_session_resumes_on_a_server_that_was_started_again(client, session, toy):
    session.append([5, 6])
    port = int(toy.url.split(":")[1])
    toy.server.stop(0).wait()
    toy.sequences.clear()
    with pytest.raises(gptport_client.ConnectionError):
        session.append([7])
    assert session.tokens == (5, 6)
    toy.server, _ = toy.serve(port)
    client.wait_until_ready(PATIENCE, loop="client")
    assert session.resume().tolist() == expected(toy, 5, 6)
    assert session.append([7]).tolist() == expected(toy, 5, 6, 7)


def test_there_is_no_room_beyond_the_models_length(session, toy):
    session.append([5] * MAX_LENGTH)
    with pytest.raises(InvalidRequest, match="1 tokens do not fit behind 64"):
        session.append([5])
    session.rewind(1)
    assert session.append([6]).tolist() == expected(toy, *[5] * (MAX_LENGTH - 1), 6)


@pytest.mark.parametrize("ids", [[], [-1], [True], "text", [1.5]])
def test_what_is_no_token_is_refused(session, ids):
    with pytest.raises(InvalidRequest, match="token_ids"):
        session.append(ids)


def test_sessions_of_tasks(toy):
    async def main():
        async with AsyncClient(toy.url, model="toy") as client, client.session() as session:
            await session.append([5, 6])
            session.rewind(1)
            async with session.fork() as fork:
                assert (await fork.append([7])).tolist() == expected(toy, 5, 7)
            toy.sequences.clear()
            with pytest.raises(SequenceLost):
                await session.append([8])
            assert (await session.resume()).tolist() == expected(toy, 5)
            assert (await session.append([8])).tolist() == expected(toy, 5, 8)

    asyncio.run(main())
    assert not toy.sequences


def test_processors_see_the_tokens_so_far_and_change_the_logits(client, toy):
    seen = []

    def ban_first(ids, logits):
        seen.append(tuple(ids.tolist()))
        logits[int(logits.argmax())] = -np.inf
        return logits

    ids = toy.tokenizer.encode(PROMPT).ids
    result = client.generate(PROMPT, max_tokens=2, loop="client", processors=[ban_first])
    second = int(next_logits(ids, toy.vocab_size).argsort()[-2])
    assert result.token_ids[0] == second
    assert seen == [tuple(ids), (*ids, second)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"processors": [lambda _, logits: logits]}, "loop='client'"),
        ({"processors": [3], "loop": "client"}, r"processors\[0\] is a int"),
        (
            {"processors": [lambda _, logits: logits[1:]], "loop": "client"},
            r"processors\[0\] returned the shape",
        ),
    ],
)
def test_a_wrong_processor_is_refused(client, arguments, message):
    with pytest.raises(InvalidRequest, match=message):
        client.generate(PROMPT, **arguments)


def test_processors_of_transformers_adapt(client):
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    both = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), NoRepeatNGramLogitsProcessor(1)])
    adapted = gptport_client.from_transformers(both)
    result = client.generate([5, 6], max_tokens=20, loop="client", processors=[adapted])
    assert len(set(result.token_ids)) == len(result.token_ids)  # no token twice


def test_a_score_is_the_log_softmax_of_each_token(client, toy):
    score = client.score(PROMPT)
    ids = tuple(toy.tokenizer.encode(PROMPT).ids)
    assert score.token_ids == ids
    for place, found in enumerate(score.logprobs, 1):
        logits = next_logits(list(ids[:place]), toy.vocab_size).astype(np.float64)
        assert found == pytest.approx(logits[ids[place]] - np.log(np.exp(logits).sum()))
    assert score.perplexity == pytest.approx(math.exp(-sum(score.logprobs) / (len(ids) - 1)))
    assert client.score(list(ids)) == score
    assert not toy.sequences
