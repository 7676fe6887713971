"""The answers to one request on their way to its sink: in pieces as they come, or all in one response."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gptport_backend.metrics import Tally
    from gptport_backend.sequence import Piece, Sink


class Answers:
    """The last of `count` answers to end also ends the request; if one fails, all do. Both are counted.

    Attributes:
        request_id: what the client calls the request, for the log.
    """

    def __init__(self, sink: Sink, count: int, tally: Tally, *, stream: bool) -> None:
        self.request_id = sink.request_id
        self._sink = sink
        self._stream = stream
        self._tally = tally
        self._running = count
        self._failed = False
        self._complete: list[Piece] = []
        self._arrived = time.monotonic()

    def send(self, piece: Piece) -> None:
        """Pass a piece of one answer on; the one with a finish reason is its last."""
        if self._failed:
            return
        final = bool(piece.finish_reason) and self._running == 1
        if self._stream:
            self._sink.send((piece,), final=final)
        else:
            self._complete.append(piece)
            if final:
                self._sink.send(tuple(sorted(self._complete, key=lambda each: each.index)), final=True)
        if piece.finish_reason:
            self._ended(1, piece.finish_reason)

    def send_all(self, pieces: list[Piece]) -> None:
        """Pass all answers on at once, however many were asked for: with `stream` in a response each."""
        self._running = len(pieces)
        for piece in pieces:
            self.send(piece)

    def fail(self, message: str) -> None:
        """End with an error of the server."""
        if not self._failed:
            self._failed = True
            self._sink.fail(message)
            self._ended(self._running, "error")

    def is_cancelled(self) -> bool:
        """True once nobody waits for the answers anymore."""
        return self._failed or self._sink.is_cancelled()

    def _ended(self, count: int, reason: str) -> None:
        self._running -= count
        self._tally.answers[reason] += count
        if not self._running:
            self._tally.requests[reason] += 1
            self._tally.request.observe(time.monotonic() - self._arrived)
