"""How likely a text is: one request to the server, or a request a token, with equal numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptport_client import InvalidRequest
from toy_model import next_logits

PROMPT = "The quick brown 世界"


@pytest.mark.parametrize("loop", ["server", "client"])
def test_a_score_is_of_each_token_given_those_before_it(client, toy, loop):
    ids = toy.tokenizer.encode(PROMPT).ids
    score = client.score(PROMPT, top=3, loop=loop)
    assert score.token_ids == tuple(ids)
    for place, (logprob, top) in enumerate(zip(score.logprobs, score.top, strict=True), 1):
        row = next_logits(ids[:place], toy.vocab_size).astype(np.float64)
        row -= np.log(np.exp(row).sum())
        assert logprob == pytest.approx(row[ids[place]], abs=1e-5)
        assert [token for token, _ in top] == np.argsort(-row)[:3].tolist()
        assert [value for _, value in top] == pytest.approx(np.sort(row)[::-1][:3], abs=1e-5)
    assert score.perplexity == pytest.approx(math.exp(-sum(score.logprobs) / len(score.logprobs)))
    assert client.score(ids, loop=loop).logprobs == score.logprobs


def test_the_server_is_asked_once_and_the_step_model_never(client, toy):
    client.score(PROMPT)
    assert (len(toy.requests), toy.steps) == (1, [])


@pytest.mark.parametrize("loop", ["server", "client"])
def test_an_answer_comes_with_the_score_of_its_prompt(client, toy, loop):
    alone = client.generate(PROMPT, max_tokens=5)
    assert alone.prompt_score is None
    result = client.generate(PROMPT, max_tokens=5, prompt_logprobs=2, loop=loop)
    assert (result.text, result.token_ids, result.usage) == (alone.text, alone.token_ids, alone.usage)
    expected = client.score(PROMPT, top=2)
    assert result.prompt_score.token_ids == expected.token_ids
    assert result.prompt_score.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    chunks = list(client.stream(PROMPT, max_tokens=5, prompt_logprobs=0, loop=loop))
    assert [bool(chunk.prompt_score) for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert not toy.sequences


@pytest.mark.parametrize("loop", ["server", "client"])
def test_what_cannot_be_scored_is_refused(client, loop):
    with pytest.raises(InvalidRequest, match="1 token"):
        client.score([5], loop=loop)
    with pytest.raises(InvalidRequest, match="80 tokens"):
        client.score([5] * 80, loop=loop)
    with pytest.raises(InvalidRequest, match="top is 21"):
        client.score(PROMPT, top=21, loop=loop)
