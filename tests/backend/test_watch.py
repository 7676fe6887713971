"""Whether someone still waits is asked beside the engine's loop, and never of a request that has ended."""

from __future__ import annotations

import threading

import pytest

from gptport_backend.watch import Watch
from test_engine import wait_until


@pytest.fixture
def watch():
    made = Watch()
    yield made
    made.close(5)


def test_a_cancellation_is_seen_without_a_question(watch) -> None:
    gone = threading.Event()
    watched, other = watch.add("one", gone.is_set), watch.add("one", lambda: False)
    assert not watched.cancelled
    gone.set()
    wait_until(lambda: watched.cancelled)
    assert not other.cancelled


def test_nothing_is_asked_of_one_that_has_ended(watch) -> None:
    asked, going_on, ended = threading.Event(), threading.Event(), threading.Event()
    late = []

    def ask() -> bool:
        late.append(ended.is_set())
        asked.set()
        assert going_on.wait(20)
        return False

    watched = watch.add("one", ask)
    assert asked.wait(20)
    ending = threading.Thread(target=lambda: (watched.end(), ended.set()))
    ending.start()
    assert not ended.wait(0.1)  # the question is on its way
    going_on.set()
    ending.join(20)
    rounds = []
    watch.add("one", lambda: rounds.append(1) or False)
    wait_until(lambda: len(rounds) > 3)
    assert late == [False]


def test_a_question_that_fails_is_asked_again_and_hurts_no_other(watch) -> None:
    answers = iter([OSError("no"), True])

    def ask() -> bool:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    watched, other = watch.add("one", ask), watch.add("one", lambda: True)
    wait_until(lambda: watched.cancelled and other.cancelled)


def test_what_comes_after_a_rest_is_asked_too(watch) -> None:
    first = watch.add("one", lambda: True)
    wait_until(lambda: first.cancelled and not watch._watched)
    second = watch.add("one", lambda: True)
    wait_until(lambda: second.cancelled)


def test_closed_it_asks_no_more() -> None:
    watch, rounds = Watch(), []
    watch.add("one", lambda: rounds.append(1) or False)
    wait_until(lambda: rounds)
    watch.close(20)
    assert not watch._thread.is_alive()
