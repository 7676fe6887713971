"""What is copied when sequences leave waits until all tokens of the step are passed on, and no row is copied in vain."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from test_engine import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Answer, Served

ALIKE_LONG = ("the first", "the other", "some more")


@pytest.fixture
def together(serve: Callable[..., Served]) -> Callable[..., tuple[Served, list[Answer]]]:
    """Requests that are admitted in one step, by the number of their tokens; all of a step are as long."""

    def ask(before: Callable[[Served], None], *max_tokens: int) -> tuple[Served, list[Answer]]:
        served = serve()
        before(served)
        prefill, go_on = served.runner.prefill, threading.Event()
        served.runner.prefill = lambda *given: go_on.wait(20) and prefill(*given)  # type: ignore[method-assign]
        served.ask(text_input="a", max_tokens=1)
        wait_until(lambda: bool(served.engine._scheduler.running))
        answers = [
            served.ask(text_input=text, max_tokens=count)
            for text, count in zip(ALIKE_LONG, max_tokens, strict=False)
        ]
        go_on.set()
        return served, answers

    return ask


def test_all_that_end_in_a_step_are_answered_before_anything_is_copied(
    together: Callable[..., tuple[Served, list[Answer]]],
) -> None:
    go_on = threading.Event()

    def hold(served: Served) -> None:
        keep: Any = lambda tokens, *_: len(tokens) > 1 and go_on.wait(30)  # noqa: E731
        served.engine._prefixes.keep = keep  # type: ignore[method-assign]

    _, answers = together(hold, 5, 5, 5)
    try:
        wait_until(lambda: all(answer.pieces and answer.finish_reason == "length" for answer in answers))
    finally:
        go_on.set()


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        ((5, 5, 5), []),
        ((5, 5, 20), [(2, 0)]),
        ((5, 20, 5), [(1, 0)]),
        ((20, 5, 5), []),
        ((5, 20, 20), [(2, 0)]),
    ],
)
def test_only_rows_that_go_on_are_copied(
    together: Callable[..., tuple[Served, list[Answer]]],
    continuation: Callable[[str, int], list[int]],
    max_tokens: tuple[int, ...],
    expected: list[tuple[int, int]],
) -> None:
    moves: list[tuple[int, int]] = []

    def count(served: Served) -> None:
        move = served.engine._cache.move

        def counted(each: Any, used: int) -> None:
            moves.append((each.source, each.target))
            move(each, used)

        served.engine._cache.move = counted  # type: ignore[method-assign]

    _, answers = together(count, *max_tokens)
    tokens = [answer.wait().token_ids for answer in answers]
    assert tokens == [continuation(text, count) for text, count in zip(ALIKE_LONG, max_tokens, strict=True)]
    assert moves == expected
