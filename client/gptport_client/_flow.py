"""Work that waits for a server, written once for callers that block and for callers that await.

A flow is a generator. It yields an action, a function that asks the server, and is sent the answer or thrown the error. Who
drives the flow calls the action, and awaits what it gives if the transport is one to await. A flow that streams yields its
chunks between the actions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from gptport_client._results import Chunk

T = TypeVar("T")
Action: TypeAlias = Callable[[], Any]
Flow: TypeAlias = Generator[Action, Any, T]
Pieces: TypeAlias = Generator[Action | Chunk, Any, None]


@dataclass(frozen=True)
class Ended(Generic[T]):
    """A flow has returned `value`."""

    value: T


def run(flow: Flow[T]) -> T:
    """Drive a flow to its end, blocking; what it returns."""
    end = advance(flow)
    assert isinstance(end, Ended)
    return end.value


async def run_async(flow: Flow[T]) -> T:
    """Drive a flow to its end, awaiting; what it returns."""
    end = await advance_async(flow)
    assert isinstance(end, Ended)
    return end.value


def advance(flow: Generator[Action | Chunk, Any, T]) -> Chunk | Ended[T]:
    """Drive a flow to its next chunk or its end, blocking."""
    resume: Callable[[], Action | Chunk] = partial(next, flow)
    while True:
        try:
            item = resume()
        except StopIteration as end:
            return Ended(end.value)
        if isinstance(item, Chunk):
            return item
        try:
            resume = partial(flow.send, item())
        except BaseException as error:  # an interrupt too: the flow cleans up
            resume = partial(flow.throw, error)


async def advance_async(flow: Generator[Action | Chunk, Any, T]) -> Chunk | Ended[T]:
    """Drive a flow to its next chunk or its end, awaiting."""
    resume: Callable[[], Action | Chunk] = partial(next, flow)
    while True:
        try:
            item = resume()
        except StopIteration as end:
            return Ended(end.value)
        if isinstance(item, Chunk):
            return item
        try:
            resume = partial(flow.send, await item())
        except BaseException as error:  # a cancelled task too: the flow cleans up
            resume = partial(flow.throw, error)
