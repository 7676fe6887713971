"""Regions that a server gives up again, for transports that block."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gptport_client._cuda_region import give_back
from gptport_client._errors import GptportError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE_TIMEOUT = 5.0  # seconds; a request that was given up may use a region for a while
PAUSE = 0.05  # seconds
_there: weakref.WeakSet[Releases] = weakref.WeakSet()


class Releases:
    """Unregisters in threads, as nobody waits for it; what is left when the client is closed, or the process ends, then.

    A process that was forked from this one shares the regions and gives up none.

    Args:
        held: the names of the regions that the server may have mapped for this client; names are taken out here.
        unregister: asks the server once. Triton refuses while a request uses the region.
    """

    def __init__(self, held: set[str], unregister: Callable[[str, float], None]) -> None:
        self._held = held
        self._unregister = unregister
        self._process = os.getpid()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="gptport-release")
        _there.add(self)

    def release(self, region: str) -> None:
        """Have the server give it up; neither waits nor fails."""
        if self._process == os.getpid():
            with contextlib.suppress(RuntimeError):  # it was closed, or Python ends
                self._threads.submit(self._give_up, region)

    def close(self) -> None:
        """Wait until it has given up all; may be called twice."""
        if self._process != os.getpid():
            return
        self._threads.shutdown()
        for region in tuple(self._held):
            self._give_up(region)

    def _give_up(self, region: str) -> None:
        end = time.monotonic() + RELEASE_TIMEOUT
        while time.monotonic() < end:
            try:
                self._unregister(region, RELEASE_TIMEOUT)
            except ServerError:  # it is in use
                time.sleep(PAUSE)
                continue
            except GptportError:
                pass
            give_back(region)
            break
        self._held.discard(region)


@atexit.register
def _close_all() -> None:
    for releases in tuple(_there):
        releases.close()
