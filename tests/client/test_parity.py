"""Client and AsyncClient give the same, for everything that both can be asked; and what only asyncio has."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Iterator

import pytest

import gptport_client
from gptport_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Outcome,
    Result,
    ServerNotReady,
    Timings,
)
from toy_checks import PATIENCE

PROMPT = "The quick brown 世界"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "世界?"}]
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "seed": 2**64 - 1, "max_tokens": 20}
QUESTIONS = {
    "generate": lambda client: client.generate(PROMPT, max_tokens=12),
    "sampled": lambda client: client.generate(PROMPT, **SAMPLED),
    "sampled here": lambda client: client.generate(PROMPT, loop="client", **SAMPLED),
    "over the state": lambda client: client.generate(PROMPT, loop="client", transport="state", **SAMPLED),
    "over nothing": lambda client: client.generate(PROMPT, loop="client", transport="tcp"),
    "token ids": lambda client: client.generate([5, 6, 7], max_tokens=3, stop=["e", "a"]),
    "stream": lambda client: client.stream(PROMPT, **SAMPLED),
    "stream here": lambda client: client.stream(PROMPT, loop="client", **SAMPLED),
    "wrong": lambda client: client.generate(PROMPT, max_tokens=0),
    "too long": lambda client: client.generate([5] * 80),
    "too long here": lambda client: client.generate([5] * 80, loop="client"),
    "chat": lambda client: client.chat(MESSAGES, max_tokens=5),
    "chat stream": lambda client: client.chat_stream(MESSAGES, max_tokens=5),
    "chat of nobody": lambda client: client.chat([]),
    "many": lambda client: client.generate_many([PROMPT, "", [5]], max_tokens=3),
    "many here": lambda client: client.generate_many([PROMPT, [5]], loop="client", max_tokens=3),
    "beam search": lambda client: client.beam_search(PROMPT, beams=2, max_tokens=3),
    "one beam": lambda client: client.beam_search(PROMPT, beams=1, loop="server"),
    "no beams": lambda client: client.beam_search(PROMPT, beams=0),
    "score": lambda client: client.score(PROMPT, top=2),
    "score here": lambda client: client.score(PROMPT, top=2, loop="client"),
    "score and answer": lambda client: client.generate(PROMPT, max_tokens=3, prompt_logprobs=1),
    "score and answer here": lambda client: client.generate(
        PROMPT, max_tokens=3, prompt_logprobs=1, loop="client"
    ),
    "score of one token": lambda client: client.score([5]),
    "adapters": lambda client: client.adapters(),
    "detokenize": lambda client: client.detokenize([5, 6, 7]),
    "within a time": lambda client: client.generate(PROMPT, max_tokens=3, timeout=60),
    "metrics": lambda client: client.metrics(),
    "ready": lambda client: client.wait_until_ready(PATIENCE),
    "models": lambda client: client.models(),
}


def blocking(url, ask, **arguments):
    """What the question gives on `Client`: a value, a list of chunks, or an error."""
    with Client(url, **{"model": "toy", **arguments}) as client:
        answer = ask(client)
        return list(answer) if isinstance(answer, Iterator) else answer


def awaiting(url, ask, **arguments):
    """The same on `AsyncClient`."""

    async def main():
        async with AsyncClient(url, **{"model": "toy", **arguments}) as client:
            answer = ask(client)
            if isinstance(answer, AsyncIterator):
                return [chunk async for chunk in answer]
            return await answer

    return asyncio.run(main())


def outcome(way, *arguments, **keywords):
    """What a question gives, without what differs every time."""
    try:
        answer = way(*arguments, **keywords)
    except gptport_client.GptportError as error:
        return type(error), str(error).split(" [request")[0]
    return [timeless(each) for each in answer] if isinstance(answer, list) else timeless(answer)


def timeless(answer):
    """Without what differs every time."""
    if isinstance(answer, Outcome):
        error = answer.error and (type(answer.error), str(answer.error).split(" [request")[0])
        return answer.index, answer.prompt, timeless(answer.result), error
    if isinstance(answer, Result):
        return dataclasses.replace(answer, timings=Timings(0, 0), request_id="")
    return answer


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_both_clients_give_the_same(toy, question):
    assert outcome(awaiting, toy.url, question) == outcome(blocking, toy.url, question)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_http_gives_the_same(toy, toy_http, question):
    metrics_url = {"metrics_url": "http://127.0.0.1:1/"}
    expected = outcome(blocking, toy.url, question, **metrics_url)
    assert outcome(blocking, toy_http, question, **metrics_url) == expected
    assert outcome(awaiting, toy_http, question, **metrics_url) == expected


@pytest.mark.parametrize("loop", ["server", "client"])
def test_both_clients_fail_the_same(toy, loop):
    """On a model that is not there, and a server that is not."""

    def ask(client):
        return client.generate(PROMPT, loop=loop)

    for arguments in ({"model": "nix"}, {"url": "127.0.0.1:1"}):
        asked = {"url": toy.url, "ask": ask, "retry": gptport_client.Retry(0), **arguments}
        found = outcome(awaiting, **asked)
        assert found[0] in (ModelNotFound, gptport_client.ConnectionError)
        assert found == outcome(blocking, **asked)


def test_the_methods_have_the_same_parameters():
    def methods(client):
        return {
            name.removeprefix("a") if name == "aclose" else name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(client, inspect.isfunction)
            if not name.startswith("_") or name == "__init__"
        }

    assert methods(AsyncClient) == methods(Client)


def in_loop(toy, use):
    """Run `use(client)` in an event loop."""

    async def main():
        async with AsyncClient(toy.url, model="toy") as client:
            return await use(client)

    return asyncio.run(main())


@pytest.mark.parametrize("loop", ["server", "client"])
def test_cancelling_the_task_cancels_on_the_server(toy, loop):
    toy.delay, toy.eos_token_ids = 0.2, ""

    async def use(client):
        task = asyncio.create_task(client.generate(PROMPT, max_tokens=50, loop=loop))
        while not (toy.requests if loop == "server" else toy.sequences):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(toy, use)
    assert toy.cancelled.wait(PATIENCE) if loop == "server" else not toy.sequences


@pytest.mark.parametrize("leave", ["break", "aclose", "with"])
def test_leaving_a_stream_cancels_on_the_server(toy, leave):
    toy.delay, toy.eos_token_ids = 0.2, ""

    async def use(client):
        stream = client.stream(PROMPT, max_tokens=50)
        if leave == "with":
            async with stream:
                await anext(stream)
        else:
            async for _ in stream:
                break
            if leave == "aclose":
                await stream.aclose()
            del stream
        assert await asyncio.to_thread(toy.cancelled.wait, PATIENCE)

    in_loop(toy, use)


@pytest.mark.parametrize("loop", ["server", "client"])
def test_closing_from_another_task_ends_the_wait(toy, loop):
    toy.delay = 0.5

    async def use(client):
        stream = client.stream(PROMPT, loop=loop)
        asyncio.get_running_loop().call_later(0.1, lambda: asyncio.ensure_future(stream.aclose()))
        with pytest.raises(Cancelled):
            async for _ in stream:
                pass

    in_loop(toy, use)


def test_the_timeout_is_for_everything(toy):
    toy.delay, toy.eos_token_ids = 0.1, ""

    async def use(client):
        for loop in ("server", "client"):
            with pytest.raises(DeadlineExceeded):
                await client.generate(PROMPT, max_tokens=50, loop=loop, timeout=0.5)

    in_loop(toy, use)


def test_many_tasks_share_a_client(toy):
    prompts = [f"{number} {PROMPT}" for number in range(24)]

    async def use(client):
        loops = ["server", "client"] * 12
        expected = [(await client.generate(prompt, max_tokens=6)).text for prompt in prompts]
        tasks = [
            client.generate(prompt, max_tokens=6, loop=loop)
            for prompt, loop in zip(prompts, loops, strict=True)
        ]
        assert [result.text for result in await asyncio.gather(*tasks)] == expected

    in_loop(toy, use)


def test_a_client_may_be_made_before_its_loop_runs(toy):
    client = AsyncClient(toy.url, model="toy")

    async def main():
        async with client:
            return await client.generate(PROMPT, max_tokens=2)

    assert asyncio.run(main()).token_ids


def test_a_closed_client_says_so(toy):
    async def use(client):
        await client.aclose()
        with pytest.raises(InvalidRequest, match="closed"):
            await client.generate(PROMPT)

    in_loop(toy, use)


def test_waiting_until_ready(toy):
    toy.ready = False

    async def use(client):
        asyncio.get_running_loop().call_later(0.3, lambda: setattr(toy, "ready", True))
        await client.wait_until_ready(PATIENCE)
        toy.models.remove("toy")
        with pytest.raises(ServerNotReady, match=r"0\.3 s: (the model is loading|no answer yet)"):
            await client.wait_until_ready(0.3)

    in_loop(toy, use)
