"""A thread that asks whether anyone still waits for the answers: each question is a way to Triton's process and back."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

REST_SECONDS = (
    0.05  # between two rounds of questions, or as long as a round took; a question costs 60 µs of a core
)


class Watched:
    """One request; `ask` is called until it says True, or `end` is called.

    Attributes:
        request_id: what the client calls it, for the log.
        cancelled: what was last known, without a question.
    """

    def __init__(self, request_id: str, ask: Callable[[], bool]) -> None:
        self.request_id = request_id
        self._ask = ask
        self._asking = threading.Lock()
        self.cancelled = False
        self.ended = False

    def look(self) -> None:
        """Ask, unless it has ended."""
        with self._asking:
            if not self.ended:
                self.cancelled = self._ask()
                self.ended = self.cancelled

    def end(self) -> None:
        """No question comes from now on, and none is on its way."""
        with self._asking:
            self.ended = True


class Watch:
    """Keeps asking for all that is watched."""

    def __init__(self) -> None:
        self._watched: list[Watched] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gptport-watch", daemon=True)
        self._thread.start()

    def add(self, request_id: str, ask: Callable[[], bool]) -> Watched:
        """Watch a request."""
        watched = Watched(request_id, ask)
        with self._wake:
            self._watched.append(watched)
            self._wake.notify()
        return watched

    def close(self, seconds: float) -> None:
        """Ask no more; waits for the question on its way, `seconds` at most."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(seconds)

    def _work(self) -> None:
        while watched := self._next():
            began = time.monotonic()
            for each in watched:
                try:
                    each.look()
                except Exception:  # it is asked again
                    log.exception("it cannot be told whether request %r is cancelled", each.request_id)
            time.sleep(max(REST_SECONDS, time.monotonic() - began))

    def _next(self) -> list[Watched]:
        """What is to be asked for now; waits until there is something. Nothing when it is closed."""
        with self._wake:
            self._watched = [each for each in self._watched if not each.ended]
            self._wake.wait_for(lambda: self._watched or self._closed)
            return [] if self._closed else [*self._watched]
