"""The answers to one request: streams of the client, one for each prompt, read together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from gptport_client import AsyncStream, Chunk, Result

MOST_UNREAD = 64  # chunks, before the streams wait for who reads


@dataclass(frozen=True)
class Piece:
    """A chunk of one of the answers."""

    index: int
    chunk: Chunk


Pieces: TypeAlias = AsyncGenerator[Piece, None]


class Answers:
    """`n` in each stream; all are cancelled on the server when reading them ends early, or one fails."""

    def __init__(self, streams: Sequence[AsyncStream], n: int) -> None:
        self._streams = streams
        self._n = n

    async def results(self) -> tuple[Result, ...]:
        """Each answer, complete."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        return tuple(result for stream in self._streams for result in stream.results)

    async def pieces(self) -> Pieces:
        """The chunks of all, as they come."""
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue(MOST_UNREAD)
        tasks = [
            asyncio.create_task(_pump(number * self._n, stream, queue))
            for number, stream in enumerate(self._streams)
        ]
        try:
            ended = 0
            while ended < len(tasks):
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    ended += 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in self._streams:
                await stream.aclose()


async def _pump(first: int, stream: AsyncStream, queue: asyncio.Queue[Piece | BaseException | None]) -> None:
    try:
        async for chunk in stream:
            await queue.put(Piece(first + chunk.index, chunk))
    except Exception as error:  # raised where the pieces are read
        await queue.put(error)
    else:
        await queue.put(None)
