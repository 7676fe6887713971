"""Tokens in the order of their probability, of which few are sorted: a whole vocabulary takes milliseconds."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

TokenArray: TypeAlias = NDArray[np.int64]

NEAR = 6.0  # below the largest logit, where a token is looked for first
FEW = 1024  # tokens, of which all are near
MOST_NEAR = 4096  # tokens; more are not worth being sorted
BUCKETS_PER_UNIT = 16
BUCKETS = 32 * BUCKETS_PER_UNIT
COLUMNS = 512  # that a vocabulary is laid out in, to find what its likeliest are not below


def likeliest(values: NDArray[np.floating[Any]], count: int) -> TokenArray:
    """The ids of the `count` largest values, largest first, the lower id first among equals."""
    if not count:
        return np.empty(0, np.int64)
    candidates = np.flatnonzero(values >= _not_above(values, count))
    if candidates.size > count:
        least = np.partition(values[candidates], -count)[-count]
        candidates = candidates[values[candidates] >= least]
    return in_order(values, candidates)[:count]


def _not_above(values: NDArray[np.floating[Any]], count: int) -> Any:
    """What at least `count` values are not below: of as many columns, if the values stand in rows, the largest is not."""
    rows = values.size // COLUMNS
    if count > COLUMNS or rows < 2:
        return -np.inf
    return np.partition(values[: rows * COLUMNS].reshape(rows, COLUMNS).max(axis=0), -count)[-count]


def in_order(values: NDArray[np.floating[Any]], ids: TokenArray) -> TokenArray:
    """Ascending `ids` in the order of their values, largest first; the sort is stable, so the lower id stays first."""
    return ids[np.argsort(-values[ids], kind="stable")]


class Ranking:
    """The tokens of `scaled [vocab]`, logits over temperature, the likeliest first, in the precision of `scaled`.

    Those near the likeliest are sorted; for who is behind them, all are put into buckets.
    """

    def __init__(self, scaled: NDArray[np.floating[Any]]) -> None:
        self._scaled = scaled
        with np.errstate(over="ignore"):  # of what is so unlikely that its probability is 0 anyway
            below = scaled - scaled.max()
        near = np.flatnonzero(below >= -NEAR) if scaled.size > FEW else np.arange(scaled.size)
        self._weights = np.exp(below, out=below)
        self._total = float(self._weights.sum())
        self._near = in_order(scaled, near) if near.size <= MOST_NEAR else near[:0]
        self._cumulative = self._weights[self._near].cumsum(dtype=np.float64) / self._total

    def reach(self, probability: float) -> float:
        """The cumulative probability of the shortest prefix that has at least `probability`."""
        if self._cumulative.size and probability <= self._cumulative[-1]:
            return float(self._cumulative[np.searchsorted(self._cumulative, probability)])
        return self._buckets.reach(probability)

    def mass(self, share: float) -> float:
        """The cumulative probability of the tokens that are at least `share` as likely as the likeliest."""
        return float(self._weights[self._weights >= share].sum()) / self._total

    def token_at(self, probability: float) -> int:
        """The first token whose cumulative probability exceeds `probability`, or the likeliest or the last there is."""
        if self._cumulative.size and probability < self._cumulative[-1]:
            return int(self._near[np.searchsorted(self._cumulative, probability, side="right")])
        return self._buckets.token_at(probability)

    def kept(self, top_p: float, min_p: float) -> TokenArray:
        """The shortest prefix that has at least `top_p`, and of it those at least `min_p` as likely as the first; ascending."""
        kept: TokenArray = np.flatnonzero(self._weights >= min_p)
        if top_p < 1:
            last = self.token_at(np.nextafter(self.reach(top_p), 0.0))
            value, least = self._scaled[kept], self._scaled[last]
            kept = kept[(value > least) | ((value == least) & (kept <= last))]
        return kept

    @cached_property
    def _buckets(self) -> Buckets:
        return Buckets(self._scaled, self._weights)


class Buckets:
    """What has weights, in the order of `worth`, the largest first; of equals the one with the lower index.

    It is counted into buckets by worth, and only the buckets in which a cumulative probability is reached are sorted.
    """

    def __init__(self, worth: NDArray[np.floating[Any]], weights: NDArray[np.floating[Any]]) -> None:
        self._worth = worth
        self._weights = weights
        with np.errstate(over="ignore"):
            place = np.minimum((worth.max() - worth) * worth.dtype.type(BUCKETS_PER_UNIT), BUCKETS - 1)
        self._place = place.astype(np.int32)
        # bincount's own conversions take four times as long
        mass = np.bincount(self._place.astype(np.intp), weights.astype(np.float64), BUCKETS).cumsum()
        self._total = float(mass[-1])
        self._mass = mass / self._total
        self._sorted: dict[int, tuple[TokenArray, NDArray[np.float64]]] = {}

    def reach(self, probability: float) -> float:
        """The cumulative probability of the shortest prefix that has at least `probability`."""
        _, cumulative = self._bucket(int(np.searchsorted(self._mass, min(probability, 1.0))))
        return float(cumulative[min(int(np.searchsorted(cumulative, probability)), cumulative.size - 1)])

    def token_at(self, probability: float) -> int:
        """The first one whose cumulative probability exceeds `probability`, or the last that has any."""
        probability = min(probability, np.nextafter(1.0, 0.0))
        order, cumulative = self._bucket(int(np.searchsorted(self._mass, probability, side="right")))
        place = int(np.searchsorted(cumulative, probability, side="right"))
        return int(order[min(place, order.size - 1)])

    def prefix(self, probability: float) -> TokenArray:
        """The shortest prefix that has at least `probability`, ascending."""
        bucket = min(int(np.searchsorted(self._mass, probability)), BUCKETS - 1)
        order, cumulative = self._bucket(bucket)
        kept = self._place < bucket
        kept[order[: int(np.searchsorted(cumulative, probability)) + 1]] = True
        return np.flatnonzero(kept)

    def _bucket(self, bucket: int) -> tuple[TokenArray, NDArray[np.float64]]:
        """What is in it, in order, and the cumulative probability up to each."""
        if bucket not in self._sorted:
            order = in_order(self._worth, np.flatnonzero(self._place == bucket))
            before = self._mass[bucket - 1] if bucket else 0.0
            self._sorted[bucket] = order, before + self._weights[order].cumsum(dtype=np.float64) / self._total
        return self._sorted[bucket]
