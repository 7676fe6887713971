"""An answer on its way: an iterator of chunks that can be left at any time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

from gptport_client._errors import InvalidRequest
from gptport_client._flow import Ended, advance, advance_async
from gptport_client._results import Result, Timings

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from gptport_client._flow import Pieces
    from gptport_client._results import Chunk


class Answer(Protocol):
    """What makes the chunks of a stream."""

    request_id: str

    def pieces(self) -> Pieces:
        """The flow of the chunks; asked for once."""

    def cancel(self) -> None:
        """Let the flow end with Cancelled, and what runs on the server end. Safe from other threads."""


class Gathered:
    """The chunks of an answer so far, and when they came."""

    def __init__(self, request_id: str, started: float) -> None:
        self._request_id = request_id
        self._started = started
        self._times: list[float] = []
        self._chunks: list[Chunk] = []

    def add(self, chunk: Chunk) -> Chunk:
        """Take note of the next chunk."""
        self._times.append(time.monotonic())
        self._chunks.append(chunk)
        return chunk

    def result(self) -> Result:
        """All of it.

        Raises:
            InvalidRequest: the last chunk has not come.
        """
        last = self._chunks[-1] if self._chunks else None
        if last is None or last.finish_reason is None or last.usage is None:
            raise InvalidRequest(
                "the answer has no result yet; read the stream to its end first", self._request_id
            )
        return Result(
            text="".join(chunk.text for chunk in self._chunks),
            token_ids=tuple(token for chunk in self._chunks for token in chunk.token_ids),
            finish_reason=last.finish_reason,
            usage=last.usage,
            timings=self._timings(),
            request_id=self._request_id,
            logprobs=tuple(each for chunk in self._chunks for each in chunk.logprobs),
            prompt_score=next((chunk.prompt_score for chunk in self._chunks if chunk.prompt_score), None),
        )

    def _timings(self) -> Timings:
        first, last = self._times[0], self._times[-1]
        later = sum(len(chunk.token_ids) for chunk in self._chunks[1:])
        return Timings(first - self._started, last - self._started, (last - first) / later if later else None)


class GatheredAnswers:
    """The chunks of all answers to a request."""

    def __init__(self, request_id: str) -> None:
        started = time.monotonic()
        self._answers: defaultdict[int, Gathered] = defaultdict(lambda: Gathered(request_id, started))

    def add(self, chunk: Chunk) -> Chunk:
        """Take note of the next chunk."""
        return self._answers[chunk.index].add(chunk)

    def result(self) -> Result:
        """All of the first answer; InvalidRequest if that is not complete."""
        return self._answers[0].result()

    def results(self) -> tuple[Result, ...]:
        """All of each, in the order of their indices; InvalidRequest if one is not complete."""
        return tuple(self._answers[index].result() for index in sorted({0, *self._answers}))


class Stream:
    """The chunks of an answer, or of several, as they come.

    Leaving it before its end (`break`, `close()`, the end of a `with` block, or just dropping it) cancels the
    request on the server. For one thread; only `close()` may come from another.

    Attributes:
        request_id: what the server's log calls the request.
    """

    def __init__(self, answer: Answer) -> None:
        self.request_id = answer.request_id
        self._answer = answer
        self._pieces = answer.pieces()
        self._turn = threading.Lock()  # of who drives the flow: a thread that reads, or one that closes
        self._gathered = GatheredAnswers(answer.request_id)

    @property
    def result(self) -> Result:
        """The whole answer, once the stream was read to its end; InvalidRequest before."""
        return self._gathered.result()

    @property
    def results(self) -> tuple[Result, ...]:
        """All answers, if several were asked for, once the stream was read to its end; InvalidRequest before."""
        return self._gathered.results()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        with self._turn:
            item = advance(self._pieces)
        if isinstance(item, Ended):
            raise StopIteration
        return self._gathered.add(item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit anything may be gone already
            self.close()

    def close(self) -> None:
        """Cancel the request on the server; does nothing once the answer is complete."""
        self._answer.cancel()
        if self._turn.acquire(
            blocking=False
        ):  # else a thread reads: it sees that it was cancelled, and ends the flow
            try:
                self._pieces.close()
            finally:
                self._turn.release()


class AsyncStream:
    """The chunks of an answer, or of several, as they come, for `async for`.

    Leaving it before its end (`break`, `aclose()`, the end of an `async with` block, or just dropping it) or
    cancelling the task that reads it cancels the request on the server. For one task.

    Attributes:
        request_id: what the server's log calls the request.
    """

    def __init__(self, answer: Answer) -> None:
        self.request_id = answer.request_id
        self._answer = answer
        self._pieces = answer.pieces()
        self._reading = False
        self._gathered = GatheredAnswers(answer.request_id)

    @property
    def result(self) -> Result:
        """The whole answer, once the stream was read to its end; InvalidRequest before."""
        return self._gathered.result()

    @property
    def results(self) -> tuple[Result, ...]:
        """All answers, if several were asked for, once the stream was read to its end; InvalidRequest before."""
        return self._gathered.results()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        self._reading = True
        try:
            item = await advance_async(self._pieces)
        finally:
            self._reading = False
        if isinstance(item, Ended):
            raise StopAsyncIteration
        return self._gathered.add(item)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at interpreter exit anything may be gone already
            self._close()

    async def aclose(self) -> None:
        """Cancel the request on the server; does nothing once the answer is complete."""
        self._close()

    def _close(self) -> None:
        self._answer.cancel()
        if not self._reading:  # a task that reads sees that it was cancelled, and ends the flow
            self._pieces.close()
