"""Responses are sent in order, by a thread of their own, and one that fails does not stop the next."""

from __future__ import annotations

import threading

from gptport_backend.outbox import Outbox


def test_jobs_run_in_order_and_are_done_after_close() -> None:
    done: list[int] = []
    outbox = Outbox()
    for number in range(100):
        outbox.put("one", lambda number=number: done.append(number))  # type: ignore[misc]
    outbox.close(5)
    assert done == list(range(100))


def test_a_job_that_fails_does_not_stop_the_next() -> None:
    done = threading.Event()
    outbox = Outbox()
    outbox.put("one", lambda: [][0])  # type: ignore[misc]
    outbox.put("one", done.set)
    assert done.wait(5)
    outbox.close(5)


def test_a_job_that_hangs_does_not_stop_the_process() -> None:
    forever = threading.Event()
    outbox = Outbox()
    outbox.put("one", lambda: forever.wait(30) and None)
    outbox.close(0.05)
    forever.set()
