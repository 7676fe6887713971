"""Where the boxes of a directed acyclic graph go when it is drawn from top to bottom.

The usual way in layers (Sugiyama, Tagawa and Toda, 1981): a box stands below everything it takes; edges over several ranks get
a place in each; ranks are ordered by the mean of their neighbours; then boxes move towards those as far as their rank allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Edge = tuple[int, int]

_SWEEPS = 8
_BEND = 10.0  # what an edge that passes takes of the width


@dataclass(frozen=True)
class Layout:
    """Where everything goes.

    Attributes:
        centers: of each box, across.
        ranks: of each box, from 0 at the top.
        bends: edge → where it is in each rank between its ends, across.
        width: of the whole.
    """

    centers: tuple[float, ...]
    ranks: tuple[int, ...]
    bends: Mapping[Edge, tuple[float, ...]]
    width: float


def layout(widths: Sequence[float], edges: Sequence[Edge], gap: float) -> Layout:
    """Place boxes of these widths, given in an order in which every edge leads to a later box or from a source."""
    ranks = _ranks(len(widths), edges)
    sizes, links, paths = list(widths), list[tuple[int, int]](), dict[tuple[int, int], list[int]]()
    rank_of = list(ranks)
    for a, b in edges:
        bends = list(range(len(sizes), len(sizes) + ranks[b] - ranks[a] - 1))
        sizes += [_BEND] * len(bends)
        rank_of += range(ranks[a] + 1, ranks[b])
        paths[a, b] = bends
        chain = [a, *bends, b]
        links += list(pairwise(chain))
    near: list[list[int]] = [[] for _ in sizes]
    for a, b in links:
        near[a].append(b)
        near[b].append(a)
    rows = [[i for i, rank in enumerate(rank_of) if rank == wanted] for wanted in range(max(rank_of) + 1)]
    centers = _centers(rows, sizes, near, rank_of, gap)
    left = min(center - size / 2 for center, size in zip(centers, sizes, strict=True))
    centers = [center - left for center in centers]
    width = max(center + size / 2 for center, size in zip(centers, sizes, strict=True))
    bent = {edge: tuple(centers[i] for i in path) for edge, path in paths.items()}
    return Layout(tuple(centers[: len(widths)]), tuple(ranks), bent, width)


def _ranks(count: int, edges: Sequence[Edge]) -> list[int]:
    """The longest way from above; what takes nothing stands right above the first that takes it."""
    ranks, fed = [0] * count, {b for _, b in edges}
    for _ in range(count):
        for a, b in edges:
            ranks[b] = max(ranks[b], ranks[a] + 1)
    for a in set(range(count)) - fed:
        ranks[a] = min((ranks[b] for before, b in edges if before == a), default=1) - 1
    return ranks


def _centers(
    rows: list[list[int]], sizes: list[float], near: list[list[int]], rank_of: list[int], gap: float
) -> list[float]:
    centers = [0.0] * len(sizes)
    for row in rows:
        _pack(row, [0.0] * len(row), sizes, centers, gap)
    for sweep in range(2 * _SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            wanted = {}
            for i in row:
                sides = [j for j in near[i] if (rank_of[j] < rank_of[i]) == down]
                if sweep >= _SWEEPS:  # ordered by now: settle between both sides
                    sides = near[i]
                wanted[i] = sum(centers[j] for j in sides) / len(sides) if sides else centers[i]
            if sweep < _SWEEPS:
                row.sort(key=wanted.__getitem__)
            _pack(row, [wanted[i] for i in row], sizes, centers, gap)
    return centers


def _pack(row: list[int], wanted: list[float], sizes: list[float], centers: list[float], gap: float) -> None:
    """Put a row's boxes where they want to be, side by side where they would overlap: the mean of packing from either end."""

    def packed(order: list[int], sign: int) -> dict[int, float]:
        found: dict[int, float] = {}
        edge = -float("inf")
        for k in order:
            half = sizes[row[k]] / 2
            at = max(sign * wanted[k], edge + half)
            found[k], edge = sign * at, at + half + gap
        return found

    left = packed(list(range(len(row))), 1)
    right = packed(list(range(len(row)))[::-1], -1)
    for k, i in enumerate(row):
        centers[i] = (left[k] + right[k]) / 2
