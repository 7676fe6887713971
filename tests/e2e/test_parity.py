"""The tokens that come out of Triton are those that transformers generates."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from in_torch import MODELS, NEW_TOKENS, PROMPTS

pytestmark = pytest.mark.parametrize("model", MODELS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_alone(client, reference, model, prompt):
    result = client(model).generate(prompt, max_tokens=NEW_TOKENS)
    expected = reference[model][prompt]
    assert list(result.token_ids) == expected
    assert result.usage.completion_tokens == len(expected)
    assert result.finish_reason == ("length" if len(expected) == NEW_TOKENS else "stop")


def test_eight_at_once_that_arrive_at_different_times(client, reference, model):
    connection = client(model)

    def generate(number: int) -> list[int]:
        time.sleep(0.2 * number)
        return list(connection.generate(PROMPTS[number], max_tokens=NEW_TOKENS).token_ids)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        results = list(pool.map(generate, range(len(PROMPTS))))
    assert dict(zip(PROMPTS, results, strict=True)) == reference[model]


@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_the_clients_loop(client, reference, model, prompt):
    result = client(model).generate(prompt, max_tokens=NEW_TOKENS, loop="client")
    assert list(result.token_ids) == reference[model][prompt]


def test_both_loops_sample_the_same_tokens(client, model):
    choice = {"max_tokens": 32, "temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 11}
    connection = client(model)
    server = connection.generate(PROMPTS[0], loop="server", **choice)
    in_client = connection.generate(PROMPTS[0], loop="client", **choice)
    assert (server.token_ids, server.text) == (in_client.token_ids, in_client.text)


def test_a_stream_is_the_text_in_pieces(client, model):
    connection = client(model)
    pieces = [chunk.text for chunk in connection.stream(PROMPTS[4], max_tokens=NEW_TOKENS)]
    assert "".join(pieces) == connection.generate(PROMPTS[4], max_tokens=NEW_TOKENS).text
    assert len(pieces) > 2


def test_token_ids_as_the_prompt(client, reference, checkpoints, model):
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(checkpoints[model] / "tokenizer.json")).encode(PROMPTS[2]).ids
    result = client(model).generate(ids, max_tokens=NEW_TOKENS)
    assert list(result.token_ids) == reference[model][PROMPTS[2]]
    assert result.usage.prompt_tokens == len(ids)
