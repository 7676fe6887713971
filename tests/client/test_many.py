"""Many prompts: bounded, in order, each with its result or its error; and what is shown meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from gptport_client import AsyncClient, InvalidRequest
from gptport_client._progress import Progress

PROMPTS = [f"{number} brown 世界" for number in range(20)]


def test_outcomes_are_in_the_prompts_order(client):
    expected = [client.generate(prompt, max_tokens=4).text for prompt in PROMPTS]
    outcomes = list(client.generate_many(PROMPTS, max_tokens=4, concurrency=5))
    assert [outcome.result.text for outcome in outcomes] == expected
    assert [outcome.index for outcome in outcomes] == list(range(20))
    assert [outcome.prompt for outcome in outcomes] == PROMPTS


def test_an_error_is_its_items_own(client):
    outcomes = list(client.generate_many(["a", "", [5] * 80, "b"], max_tokens=2))
    assert [type(outcome.error) for outcome in outcomes] == [
        type(None),
        InvalidRequest,
        InvalidRequest,
        type(None),
    ]
    assert [outcome.result is None for outcome in outcomes] == [False, True, True, False]


def test_prompts_are_drawn_as_there_is_room(client):
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield "The"

    outcomes = client.generate_many(endless(), max_tokens=1, concurrency=3)
    for _ in range(5):
        next(outcomes)
    outcomes.close()
    assert 5 <= len(drawn) <= 5 + 12


def test_no_more_than_asked_for_run_at_a_time(client, toy):
    running, most, lock = [0], [0], threading.Lock()

    def track(change):
        with lock:
            running[0] += change
            most[0] = max(most[0], running[0])

    generate = toy._generate

    def watched(*arguments):
        track(1)
        yield from generate(*arguments)
        track(-1)

    toy._generate, toy.delay = watched, 0.005
    list(client.generate_many(PROMPTS, max_tokens=3, concurrency=3))
    assert most[0] <= 3

    async def main():
        async with AsyncClient(toy.url, model="toy") as other:
            return [outcome async for outcome in other.generate_many(PROMPTS, max_tokens=3, concurrency=3)]

    assert len(asyncio.run(main())) == 20
    assert most[0] <= 3


def test_an_asynchronous_generator_of_prompts(toy):
    async def prompts():
        for prompt in PROMPTS[:3]:
            await asyncio.sleep(0)
            yield prompt

    async def main():
        async with AsyncClient(toy.url, model="toy") as client:
            return [outcome.prompt async for outcome in client.generate_many(prompts(), max_tokens=1)]

    assert asyncio.run(main()) == PROMPTS[:3]


@pytest.mark.parametrize(
    ("prompts", "concurrency", "message"),
    [("text", 1, "prompts is a str"), (3, 1, "prompts is a int"), (["a"], 0, "concurrency is 0")],
)
def test_what_is_not_many_is_refused_at_once(client, prompts, concurrency, message):
    with pytest.raises(InvalidRequest, match=message):
        client.generate_many(prompts, concurrency=concurrency)


def test_the_bar_says_how_far_it_is(monkeypatch, capsys):
    progress = Progress([1, 2, 3, 4], shown=True)
    progress.count()
    assert progress.line().startswith("[######                  ] 1 of 4, ")
    assert Progress(iter([1]), shown=True).line().startswith("0 done")
    with progress:
        pass
    assert capsys.readouterr().err == ""  # standard error is no terminal here
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress([1], shown=True) as shown:
        shown.count()
    assert "1 of 1" in capsys.readouterr().err
