"""A thread that sends, so that the engine does not wait for it: sending takes a tenth of a decode step of 16."""

from __future__ import annotations

import logging
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


class Outbox:
    """Runs what is put into it one by one, in order, in a thread of its own."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="gptport-outbox", daemon=True)
        self._thread.start()

    def put(self, request_id: str, job: Callable[[], None]) -> None:
        """Run `job`, which sends something of a request, when all before it are done; returns at once."""
        self._jobs.put((request_id, job))

    def close(self, seconds: float) -> None:
        """Wait until all jobs are done, `seconds` at most."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            request_id, job = item
            try:
                job()
            except Exception:  # nobody is left who could be told
                log.exception("a response to request %r could not be sent", request_id)
