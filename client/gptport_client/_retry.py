"""Asking again, where that can do no harm: nothing was answered yet, and the error may pass."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gptport_client._errors import (
    ConnectionError,  # noqa: A004 - ours
    QueueFull,
    ServerNotReady,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._transport import AnyTransport

T = TypeVar("T")
TRANSIENT = (ConnectionError, QueueFull, ServerNotReady)


@dataclass(frozen=True)
class Retry:
    """How often to ask again, and how long to wait before.

    Attributes:
        times: most times to ask again; 0 never does.
        first_pause: seconds before the first time; each pause is twice the one before, and up to a quarter longer or
            shorter, so that clients that were refused together do not come back together.
        longest_pause: seconds; no pause is longer.
    """

    times: int = 2
    first_pause: float = 0.1
    longest_pause: float = 5.0

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each time."""
        for number in range(self.times):
            jitter = random.uniform(0.75, 1.25)
            yield min(self.first_pause * 2**number * jitter, self.longest_pause)


def retrying(
    attempt: Callable[[], Flow[T]], retry: Retry, deadline: Deadline, transport: AnyTransport
) -> Flow[T]:
    """What `attempt` returns; it is made again after a transient error, as long as the deadline allows."""
    for pause in retry.pauses():
        try:
            return (yield from attempt())
        except TRANSIENT:
            if not deadline.allows(pause):
                raise
        yield partial(transport.sleep, pause)
    return (yield from attempt())
