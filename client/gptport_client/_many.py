"""Many prompts, a bounded number at a time, the answers in the prompts' order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from gptport_client._errors import GptportError, InvalidRequest
from gptport_client._params import SamplingParams, check_integer
from gptport_client._prompt import Message, Prompt

if TYPE_CHECKING:
    from gptport_client._progress import Progress
    from gptport_client._results import Result

MOST_AT_A_TIME = 1024
# Answers that wait for a slow one before them: so many times `concurrency` are drawn ahead, so that there is work meanwhile.
AHEAD = 4


@dataclass(frozen=True)
class Request:
    """One of many: a prompt or a conversation, with parameters of its own.

    Attributes:
        prompt: see `Client.generate`.
        messages: see `Client.chat`; instead of a prompt.
        params: None takes those that all have.
        tag: anything, for who reads the outcome.

    Raises:
        InvalidRequest: there are both of prompt and messages, or none.
    """

    prompt: Prompt | None = None
    messages: Sequence[Message] | None = None
    params: SamplingParams | None = None
    tag: object = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            found = "neither" if self.prompt is None else "both"
            raise InvalidRequest(f"the request has {found} of prompt and messages; give exactly one of them")


Item: TypeAlias = Prompt | Request
Items: TypeAlias = Iterable[Item] | AsyncIterable[Item]


@dataclass(frozen=True)
class Outcome:
    """What became of one of many prompts: a result or an error.

    Attributes:
        index: the prompt's place, from 0.
        prompt: as it was given.
        result: the answer; None if there is an error.
        error: what went wrong; None if there is a result.
    """

    index: int
    prompt: Item
    result: Result | None
    error: GptportError | None = None


def check_many(prompts: object, concurrency: int) -> None:
    """Raise InvalidRequest unless `prompts` are many and `concurrency` is a number from 1 on."""
    check_integer("concurrency", concurrency, 1, MOST_AT_A_TIME)
    if isinstance(prompts, (str, bytes)) or not isinstance(prompts, (Iterable, AsyncIterable)):
        raise InvalidRequest(f"prompts is a {type(prompts).__name__}; give a list or a generator of prompts")


def many(
    prompts: Iterable[Item], ask: Callable[[Item], Result], concurrency: int, progress: Progress
) -> Iterator[Outcome]:
    """The outcome of `ask` for each prompt, in order, with threads.

    Prompts are drawn as there is room for them. Who leaves the iterator waits for those that run.
    """
    running: deque[Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="gptport-many")
    try:
        with progress:
            for index, prompt in enumerate(prompts):
                running.append(pool.submit(_outcome, index, prompt, ask))
                running[-1].add_done_callback(progress.count)
                if len(running) >= AHEAD * concurrency:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


async def many_async(
    prompts: Items, ask: Callable[[Item], Awaitable[Result]], concurrency: int, progress: Progress
) -> AsyncIterator[Outcome]:
    """The outcome of `ask` for each prompt, in order, with tasks. Who leaves the iterator cancels those that run."""
    running: deque[asyncio.Task[Outcome]] = deque()
    slots = asyncio.Semaphore(concurrency)
    index = 0
    try:
        with progress:
            async for prompt in _each(prompts):
                running.append(asyncio.ensure_future(_outcome_async(index, prompt, ask, slots)))
                running[-1].add_done_callback(progress.count)
                index += 1
                if len(running) >= AHEAD * concurrency:
                    yield await running.popleft()
            while running:
                yield await running.popleft()
    finally:
        for task in running:
            task.cancel()


def _outcome(index: int, prompt: Item, ask: Callable[[Item], Result]) -> Outcome:
    try:
        return Outcome(index, prompt, ask(prompt))
    except GptportError as error:
        return Outcome(index, prompt, None, error)


async def _outcome_async(
    index: int, prompt: Item, ask: Callable[[Item], Awaitable[Result]], slots: asyncio.Semaphore
) -> Outcome:
    try:
        async with slots:
            return Outcome(index, prompt, await ask(prompt))
    except GptportError as error:
        return Outcome(index, prompt, None, error)


async def _each(prompts: Items) -> AsyncIterator[Item]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt
