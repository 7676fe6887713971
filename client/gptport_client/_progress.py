"""A progress bar on the terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sized
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

WIDTH = 24
REDRAW = 0.1  # seconds


class Progress:
    """How many of how many are done, on standard error, if that is a terminal; safe from several threads.

    Args:
        items: what is worked on; its length is the total, if it has one.
        shown: False shows nothing.
    """

    def __init__(self, items: object, *, shown: bool) -> None:
        self._total = len(items) if isinstance(items, Sized) else None
        self._shown = shown and sys.stderr.isatty()
        self._done = 0
        self._started = self._drawn = time.monotonic()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._shown:
            sys.stderr.write(f"\r{self.line()}\n")

    def count(self, _: object = None) -> None:
        """One more is done."""
        with self._lock:
            self._done += 1
            if self._shown and time.monotonic() - self._drawn > REDRAW:
                self._drawn = time.monotonic()
                sys.stderr.write(f"\r{self.line()}")
                sys.stderr.flush()

    def line(self) -> str:
        """What the bar says now."""
        rate = self._done / max(time.monotonic() - self._started, 1e-3)
        if not self._total:
            return f"{self._done} done, {rate:.1f} a second"
        filled = WIDTH * self._done // self._total
        left = (self._total - self._done) / rate if rate else 0
        return (
            f"[{'#' * filled:<{WIDTH}}] {self._done} of {self._total}, {rate:.1f} a second, {left:.0f} s left"
        )
