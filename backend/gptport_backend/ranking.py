"""Tokens in the order of their probability, of which few are sorted: a whole vocabulary takes milliseconds."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gptport_backend.processors import Logits

TokenArray: TypeAlias = NDArray[np.int64]

NEAR = 6.0  # below the largest logit, where the likeliest are looked for first
MOST_NEAR = 4096  # tokens; more are not worth being sorted
BUCKETS_PER_UNIT = 16
BUCKETS = 32 * BUCKETS_PER_UNIT


def likeliest(values: NDArray[np.floating[Any]], count: int) -> TokenArray:
    """The ids of the `count` largest values, largest first, the lower id first among equals."""
    if not count:
        return np.empty(0, np.int64)
    largest = values.max()
    for below in (NEAR, 2 * NEAR):
        candidates = np.flatnonzero(values >= largest - below)
        if candidates.size >= count:
            break
    else:
        candidates = np.arange(values.size)
    if candidates.size > count:
        least = np.partition(values[candidates], -count)[-count]
        candidates = candidates[values[candidates] >= least]
    return in_order(values, candidates)[:count]


def in_order(values: NDArray[np.floating[Any]], ids: TokenArray) -> TokenArray:
    """Ascending `ids` in the order of their values, largest first; the sort is stable, so the lower id stays first."""
    return ids[np.argsort(-values[ids], kind="stable")]


class Ranking:
    """The tokens of `scaled [vocab]`, logits over temperature, the likeliest first.

    The exponentials are in float32, many times faster than in float64: a rounding error of 1e-7 of each, of their sum less.
    Those near the likeliest are sorted; for who is behind them, all are put into buckets.

    Attributes:
        below: how far each is from the likeliest, 0 or less.
        total: the sum of exp(below).
    """

    def __init__(self, scaled: Logits) -> None:
        self._scaled = scaled
        with np.errstate(over="ignore"):  # of what is so unlikely that its probability is 0 anyway
            self.below = scaled - scaled.max()
        self._weights = np.exp(self.below)
        self.total = float(self._weights.sum())
        near = np.flatnonzero(self.below >= -NEAR)
        self._near = in_order(scaled, near) if near.size <= MOST_NEAR else near[:0]
        self._cumulative = self._weights[self._near].cumsum(dtype=np.float64) / self.total

    def at_least(self, share: float) -> TokenArray:
        """The tokens that are at least about `share` as likely as the likeliest, ascending: rather too many than too few."""
        return np.flatnonzero(self._weights >= np.float32(0.999 * share))

    def reach(self, probability: float) -> float:
        """The cumulative probability of the shortest prefix that has at least `probability`."""
        if probability >= 1:
            return 1.0
        if self._cumulative.size and probability <= self._cumulative[-1]:
            return float(self._cumulative[np.searchsorted(self._cumulative, probability)])
        return self._buckets.reach(probability)

    def token_at(self, probability: float) -> int:
        """The first token whose cumulative probability exceeds `probability`, less than 1."""
        if self._cumulative.size and probability < self._cumulative[-1]:
            return int(self._near[np.searchsorted(self._cumulative, probability, side="right")])
        return self._buckets.token_at(probability)

    def prefix(self, probability: float) -> TokenArray:
        """The shortest prefix that has at least `probability`, ascending."""
        if probability >= 1:
            return np.arange(self._scaled.size)
        last = self.token_at(max(0.0, np.nextafter(self.reach(probability), 0.0)))
        least = self._scaled[last]
        kept: TokenArray = np.flatnonzero(self._scaled >= least)
        first_of_equals: TokenArray = kept[(self._scaled[kept] > least) | (kept <= last)]
        return first_of_equals

    @cached_property
    def _buckets(self) -> Buckets:
        return Buckets(-self.below, self._weights)


class Buckets:
    """What has weights, in the order of `depth`, 0 or more, the smallest first; of equals the one with the lower index.

    It is counted into buckets by depth, and only the bucket in which a cumulative probability is reached is sorted.
    """

    def __init__(self, depth: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        self._depth = depth
        self._weights = weights
        with np.errstate(over="ignore"):
            place = np.minimum(depth * np.float32(BUCKETS_PER_UNIT), BUCKETS - 1)
        self._place = place.astype(np.int32)
        mass = np.bincount(self._place, weights, BUCKETS).cumsum()
        self._total = float(mass[-1])
        self._mass = mass / self._total

    def reach(self, probability: float) -> float:
        """The cumulative probability of the shortest prefix that has at least `probability`."""
        _, cumulative = self._bucket(int(np.searchsorted(self._mass, probability)))
        return float(cumulative[min(int(np.searchsorted(cumulative, probability)), cumulative.size - 1)])

    def token_at(self, probability: float) -> int:
        """The first one whose cumulative probability exceeds `probability`, less than 1."""
        order, cumulative = self._bucket(int(np.searchsorted(self._mass, probability, side="right")))
        place = int(np.searchsorted(cumulative, probability, side="right"))
        return int(order[min(place, order.size - 1)])

    def prefix(self, probability: float) -> TokenArray:
        """The shortest prefix that has at least `probability`, in any order."""
        bucket = min(int(np.searchsorted(self._mass, probability)), BUCKETS - 1)
        order, cumulative = self._bucket(bucket)
        count = min(int(np.searchsorted(cumulative, probability)) + 1, order.size)
        return np.concatenate((np.flatnonzero(self._place < bucket), order[:count]))

    def _bucket(self, bucket: int) -> tuple[TokenArray, NDArray[np.float64]]:
        """What is in it, in order, and the cumulative probability up to each."""
        members = np.flatnonzero(self._place == bucket)
        order = members[np.argsort(self._depth[members], kind="stable")]
        before = self._mass[bucket - 1] if bucket else 0.0
        return order, before + self._weights[order].cumsum(dtype=np.float64) / self._total
