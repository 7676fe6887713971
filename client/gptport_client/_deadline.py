"""One time limit over several calls."""

from __future__ import annotations

import time

from gptport_client._errors import DeadlineExceeded


class Deadline:
    """`timeout` seconds from now; None is no limit."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self, request_id: str = "") -> float | None:
        """Seconds left, above 0; None without a limit.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(
                f"timeout of {self._timeout:g} s passed; give a longer timeout or fewer max_tokens",
                request_id,
            )
        return left

    def allows(self, seconds: float) -> bool:
        """Whether more than `seconds` are left."""
        return self._end is None or time.monotonic() + seconds < self._end
