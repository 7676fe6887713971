"""The order in which contestants take turns, and what is computed from their turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Result = TypeVar("Result")


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{shown(self.median)} ({shown(self.least)}–{shown(self.most)})"


def shown(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def spread(values: Sequence[float]) -> Spread:
    """Median and range of `values`; ValueError if there are none."""
    if not values:
        raise ValueError("nothing was measured, so there is no median")
    return Spread(statistics.median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as much `ours` is, turn by turn: each turn is divided by the other's turn beside it.

    A machine that is slow for a while is slow for both sides of such a pair, which is why the pairs are not mixed.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} turns cannot be paired with {len(theirs)}")
    return spread([mine / other for mine, other in zip(ours, theirs, strict=True)])


def take_turns(names: Sequence[str], turns: int, run: Callable[[str], Result]) -> dict[str, list[Result]]:
    """Run every contestant once, then every one again (A B C A B C …); the results of each in order."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            results[name].append(run(name))
    return results
