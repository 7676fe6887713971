"""The client on the real Triton: over HTTP as over gRPC, from tasks as from threads; sessions, scores, cancellation."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gptport_client import AsyncClient, Client, InvalidRequest, ModelNotFound
from in_torch import NEW_TOKENS, PROMPTS
from serve_command import PATIENCE

MODEL = "smollm2"


@pytest.fixture(params=["grpc", "http"])
def url(server, request):
    address = server.address
    return address.grpc_url if request.param == "grpc" else address.http_url


@pytest.fixture
def both(url):
    with Client(url, model=MODEL) as client:
        yield client


@pytest.mark.parametrize("loop", ["server", "client"])
def test_greedy_tokens_are_those_of_transformers(both, reference, loop):
    result = both.generate(PROMPTS[0], max_tokens=NEW_TOKENS, loop=loop)
    assert list(result.token_ids) == reference[MODEL][PROMPTS[0]]


def test_the_same_seed_is_the_same_text(both, client):
    choice = {
        "max_tokens": 24,
        "temperature": 0.9,
        "top_k": 40,
        "top_p": 0.95,
        "seed": 2**64 - 1,
        "stop": ["zz"],
    }
    expected = client(MODEL).generate(PROMPTS[1], **choice)
    for loop in ("server", "client"):
        assert both.generate(PROMPTS[1], loop=loop, **choice).token_ids == expected.token_ids


def test_tasks_get_what_threads_get(url, reference):
    async def main():
        async with AsyncClient(url, model=MODEL) as client:
            asked = [client.generate(prompt, max_tokens=NEW_TOKENS) for prompt in PROMPTS]
            return await asyncio.gather(*asked)

    found = [list(result.token_ids) for result in asyncio.run(main())]
    assert found == [reference[MODEL][prompt] for prompt in PROMPTS]


def test_errors_are_typed(both, url):
    with pytest.raises(InvalidRequest, match="2048"):
        both.generate("hello " * 3000)
    for loop in ("server", "client"):
        with Client(url, model="nix") as other, pytest.raises(ModelNotFound):
            other.generate("a", loop=loop)


def test_models_and_readiness(both):
    both.wait_until_ready(PATIENCE)
    both.wait_until_ready(PATIENCE, loop="client")
    assert {MODEL, f"{MODEL}_step"} <= {model.name for model in both.models() if model.ready}


def test_leaving_a_stream_frees_its_slot(both, gauge, becomes):
    becomes(0, gauge, "running")
    cancelled = gauge("requests_total", reason="cancelled")
    stream = both.stream(PROMPTS[2], max_tokens=1500)
    next(stream)
    becomes(1, gauge, "running")
    stream.close()
    becomes(0, gauge, "running")
    becomes(cancelled + 1, gauge, "requests_total", MODEL, "cancelled")


def test_metrics(server):
    with Client(server.address.grpc_url, model=MODEL, metrics_url=server.address.metrics_url) as client:
        client.generate(PROMPTS[0], max_tokens=1)
        assert client.metrics().total("nv_inference_request_success", model=MODEL) > 0


def test_a_session_rewinds_forks_and_resumes(both):
    ids = both.tokenize("The capital of France is Paris. The capital of Germany is")
    with both.session() as session:
        whole = session.append(ids)
        session.rewind(5)
        piecewise = [session.append([token]) for token in ids[-5:]][-1]
        np.testing.assert_allclose(piecewise, whole, atol=2e-3)
        with session.fork() as fork:
            fork.rewind(1)
            np.testing.assert_allclose(fork.append(ids[-1:]), whole, atol=2e-3)
        session.append([5])
        session.rewind(1)
        np.testing.assert_allclose(session.resume(), whole, atol=2e-3)


def test_a_score_is_that_of_transformers(both, checkpoints):
    import torch
    from transformers import AutoModelForCausalLM

    score = both.score("The capital of France is Paris.", top=2)
    stepwise = both.score("The capital of France is Paris.", top=2, loop="client")
    np.testing.assert_allclose(stepwise.logprobs, score.logprobs, atol=1e-3)
    assert [[token for token, _ in each] for each in stepwise.top] == [
        [token for token, _ in each] for each in score.top
    ]
    model = AutoModelForCausalLM.from_pretrained(checkpoints[MODEL], dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([score.token_ids])).logits[0].double()
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(score.token_ids[1:])[:, None])[:, 0]
    np.testing.assert_allclose(score.logprobs, expected.numpy(), atol=1e-3)


@pytest.mark.parametrize("loop", ["server", "client"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beam_search_finds_what_transformers_finds(both, checkpoints, length_penalty, loop):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = "The quick brown fox"
    ids = both.tokenize(prompt)
    model = AutoModelForCausalLM.from_pretrained(checkpoints[MODEL], dtype=torch.float32)
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids]), length_penalty=length_penalty, **options)
    found = both.beam_search(prompt, beams=3, max_tokens=8, length_penalty=length_penalty, loop=loop)
    logprobs = both.score([*ids, *found[0].token_ids]).logprobs[len(ids) - 1 :]
    assert found[0].logprob == pytest.approx(sum(logprobs), abs=1e-2)
    assert [list(beam.token_ids) for beam in found] == expected[:, len(ids) :].tolist()


def test_many_prompts(both, reference):
    outcomes = both.generate_many(PROMPTS, max_tokens=NEW_TOKENS, concurrency=4)
    assert {outcome.prompt: list(outcome.result.token_ids) for outcome in outcomes} == reference[MODEL]


def test_a_chat_is_what_transformers_makes_of_it(both, checkpoints):
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[MODEL])
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    expected = both.generate(prompt, max_tokens=NEW_TOKENS)
    for loop in ("server", "client"):
        result = both.chat(messages, max_tokens=NEW_TOKENS, loop=loop)
        assert (result.token_ids, result.usage) == (expected.token_ids, expected.usage)
    assert "Paris" in expected.text


def test_the_gateway(server, reference):
    import openai

    from toy_gateway import gateway

    with gateway(server.address.grpc_url) as url:
        ask = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert MODEL in [model.id for model in ask.models.list()]
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        events = ask.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=24, stream=True
        )
        assert "Paris" in "".join(event.choices[0].delta.content for event in events)
        with Client(server.address.grpc_url, model=MODEL) as client:
            expected = client.generate(PROMPTS[0], max_tokens=NEW_TOKENS).text
        found = ask.completions.create(model=MODEL, prompt=PROMPTS[0], temperature=0, max_tokens=NEW_TOKENS)
        assert found.choices[0].text == expected
        assert found.usage.completion_tokens == len(reference[MODEL][PROMPTS[0]])
