"""Regions that a server gives up again, while nobody waits for it."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from gptport_client._cuda_region import give_back
from gptport_client._errors import GptportError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE_TIMEOUT = 5.0  # seconds; a request that was given up may use a region for a while
PAUSE = 0.05  # seconds
_there: weakref.WeakSet[Releases] = weakref.WeakSet()


class Releases:
    """The regions that a server may have mapped for a client. A thread has it give them up, one for all clients.

    What is left when the client is closed, or the process ends, is given up then. A process that was forked from this one shares
    the regions and gives up none.

    Args:
        unregister: asks the server once. Triton refuses while a request uses the region.
    """

    def __init__(self, unregister: Callable[[str, float], None]) -> None:
        self._held: set[str] = set()
        self._unregister = unregister
        self._process = os.getpid()
        _there.add(self)

    def hold(self, region: str) -> None:
        """The server is about to be told of it."""
        self._held.add(region)
        _worker.start()

    def release(self, region: str) -> None:
        """Have the server give it up; neither waits nor fails.

        May be called by a finalizer, so in any thread and in the middle of anything: a lock might be the one that is held there.
        """
        _worker.queue.put((self, region))

    def close(self) -> None:
        """Wait until it has given up all; may be called twice."""
        if self._process != os.getpid():
            return
        for region in tuple(self._held):
            end = time.monotonic() + RELEASE_TIMEOUT
            while not self.attempt(region, last=time.monotonic() > end):
                time.sleep(PAUSE)

    def attempt(self, region: str, *, last: bool) -> bool:
        """Ask the server; whether there is no need to ask again. After the `last` time there is none."""
        if self._process != os.getpid():
            return True
        try:
            self._unregister(region, RELEASE_TIMEOUT)
        except ServerError:  # it is in use
            if not last:
                return False
        except GptportError:  # what became of the server cannot be told
            give_back(region)
        else:
            give_back(region)
        self._held.discard(region)
        return True


Item: TypeAlias = tuple[Releases, str]


class _Worker:
    """The thread, which is begun when there is something to give up later."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[Item] = SimpleQueue()  # its put takes no lock of Python's
        self._lock = threading.Lock()
        self._process = 0

    def start(self) -> None:
        """Begin, once in each process."""
        with self._lock:
            if self._process != os.getpid():
                self._process = os.getpid()
                threading.Thread(target=self._run, name="gptport-release", daemon=True).start()

    def _run(self) -> None:
        pending: dict[Item, float] = {}  # → when it is over
        while True:
            try:
                item = self.queue.get(timeout=PAUSE if pending else None)
                pending[item] = time.monotonic() + RELEASE_TIMEOUT
                del item  # which would keep a client
            except Empty:
                pass
            _attempt_all(pending)


def _attempt_all(pending: dict[Item, float]) -> None:
    for (releases, region), end in tuple(pending.items()):
        if releases.attempt(region, last=time.monotonic() > end):
            del pending[releases, region]


_worker = _Worker()


@atexit.register
def _close_all() -> None:
    for releases in tuple(_there):
        releases.close()
