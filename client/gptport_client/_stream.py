"""An answer on its way: an iterator of chunks that can be left at any time."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from gptport_client._errors import ProtocolError
from gptport_client._results import Result, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from gptport_client._results import Chunk


class Stream:
    """The chunks of one answer as they come.

    Leaving it before its end (`break`, `close()`, the end of a `with` block, or just dropping it) cancels the
    request on the server. For one thread; only `close()` may come from another.

    Attributes:
        request_id: what the server's log calls the request.
    """

    def __init__(self, chunks: Iterator[Chunk], cancel: Callable[[], None], request_id: str) -> None:
        self._chunks = chunks
        self._cancel = cancel
        self.request_id = request_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

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
        self._cancel()


def collect(stream: Stream, started: float) -> Result:
    """Read `stream` to its end; `started` is when it was asked for, on `time.monotonic`'s clock."""
    chunks: list[Chunk] = []
    first = started
    for chunk in stream:
        first = first if chunks else time.monotonic()
        chunks.append(chunk)
    last = chunks[-1] if chunks else None
    if last is None or last.finish_reason is None or last.usage is None:
        raise ProtocolError("the answer ended without a finish reason", stream.request_id)
    return Result(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
        timings=Timings(first - started, time.monotonic() - started),
        request_id=stream.request_id,
    )
