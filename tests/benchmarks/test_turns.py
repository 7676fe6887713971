"""The harness's own arithmetic: who runs when, and what is made of it."""

from __future__ import annotations

import pytest
from benchmarks import turns


def test_contestants_take_turns() -> None:
    order: list[str] = []
    turns.take_turns(["a", "b"], 3, order.append)
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_results_stay_in_the_order_of_the_turns() -> None:
    numbers = iter(range(4))
    assert turns.take_turns(["a", "b"], 2, lambda _: next(numbers)) == {"a": [0, 2], "b": [1, 3]}


def test_a_ratio_compares_turns_that_stood_side_by_side() -> None:
    """In the second turn the machine was half as fast for both, which no ratio may show."""
    assert turns.ratio([20.0, 10.0], [10.0, 5.0]) == turns.Spread(2.0, 2.0, 2.0)


def test_a_ratio_has_the_spread_of_its_pairs() -> None:
    assert turns.ratio([10.0, 30.0, 20.0], [10.0, 10.0, 10.0]) == turns.Spread(2.0, 1.0, 3.0)


def test_turns_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="2 turns cannot be paired with 1"):
        turns.ratio([1.0, 2.0], [1.0])


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        turns.spread([])


def test_numbers_are_shown_without_powers_of_ten() -> None:
    assert str(turns.spread([971.26, 1006.3, 1026.0])) == "1,006 (971–1,026)"
    assert str(turns.spread([0.2, 0.4, 0.125])) == "0.2 (0.125–0.4)"
