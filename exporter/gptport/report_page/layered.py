"""Where the boxes of a directed acyclic graph go when it is drawn from top to bottom.

The usual way in layers (Sugiyama, Tagawa and Toda, 1981): a box stands below everything it takes; edges over several ranks get
a place in each; ranks are ordered by the mean of their neighbours; then boxes move towards those as far as their rank allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
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
    # What only enters or leaves, or passes several ranks, finds its place beside what is firm.
    short = {path[0] for path in paths.values() if len(path) == 1}
    firm = [len(near[i]) > 1 if i < len(widths) else i in short for i in range(len(sizes))]
    centers = _centers(rows, sizes, near, rank_of, firm, gap)
    for path in paths.values():
        _straighten(path, rows, rank_of, sizes, centers)
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
    rows: list[list[int]],
    sizes: list[float],
    near: list[list[int]],
    rank_of: list[int],
    firm: Sequence[bool],
    gap: float,
) -> list[float]:
    """Looking down and up in turns, find the order in each row, then the places."""
    centers = [0.0] * len(sizes)
    for sweep in range(2 * _SWEEPS + 1):
        down, ordering = sweep % 2 == 0, sweep < _SWEEPS
        for row in rows if down else rows[::-1]:
            wanted = list(centers)
            for i in row:
                seen = [j for j in near[i] if (rank_of[j] < rank_of[i]) == down]
                if not ordering:
                    seen = [j for j in seen if firm[j]] or (seen if not firm[i] else [])
                wanted[i] = sum(centers[j] for j in seen) / len(seen) if seen else centers[i]
            if ordering:
                row.sort(key=lambda i: (not firm[i], wanted[i]))
            _pack(row, wanted, sizes, firm, centers, gap)
    return centers


def _pack(
    row: list[int],
    wanted: list[float],
    sizes: list[float],
    firm: Sequence[bool],
    centers: list[float],
    gap: float,
) -> None:
    """Put what stands in a row where it wants to be, the firm first; where that overlaps, side by side around it."""
    ends = list(accumulate(sizes[i] + gap for i in row))
    middles = [
        end - gap - sizes[i] / 2 for end, i in zip(ends, row, strict=True)
    ]  # if all stood side by side
    first = [k for k, i in enumerate(row) if firm[i]]
    shifts = _ascending([wanted[row[k]] - middles[k] for k in first])
    for k, shift in zip(first, shifts, strict=True):
        centers[row[k]] = middles[k] + shift
    placed = dict(zip(first, shifts, strict=True))
    for k in sorted(set(range(len(row))) - set(first)):
        low = max((shift for j, shift in placed.items() if j < k), default=-float("inf"))
        high = min((shift for j, shift in placed.items() if j > k), default=float("inf"))
        placed[k] = min(max(wanted[row[k]] - middles[k], low), high)
        centers[row[k]] = middles[k] + placed[k]


def _ascending(values: list[float]) -> list[float]:
    """The nearest values that never fall: the mean of raising what is too low and of lowering what is too high."""
    raised = accumulate(values, max)
    lowered = list(accumulate(values[::-1], min))[::-1]
    return [(a + b) / 2 for a, b in zip(raised, lowered, strict=True)]


def _straighten(
    path: Sequence[int], rows: list[list[int]], rank_of: list[int], sizes: list[float], centers: list[float]
) -> None:
    """Lead an edge that passes several ranks straight down, at its outermost place, if nothing stands in its way there."""
    if not path:
        return
    middle = sum(centers) / len(centers)
    x = max((centers[i] for i in path), key=lambda at: abs(at - middle))
    free = all(
        abs(centers[j] - x) >= (sizes[i] + sizes[j]) / 2 for i in path for j in rows[rank_of[i]] if j != i
    )
    if free:
        for i in path:
            centers[i] = x
