"""Who runs next. By priority, then first come, first served; rows of the KV cache are the indices of `running`."""

from __future__ import annotations

import bisect
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from gptport_backend.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable

S = TypeVar("S", bound=Sequence)

# What a run of the graph costs at least, in tokens: it reads all weights, however few tokens it computes.
LEAST_COST = 32


@dataclass(frozen=True)
class Prefill(Generic[S]):
    """Prompt tokens to compute now: of several sequences from their beginning, or the next `count` of one, from `start` on.

    The sequences have the rows `first_row`, `first_row + 1`, … With a `count` of 0 all but the last token of one is known,
    which the next decode step computes.
    """

    first_row: int
    sequences: tuple[S, ...]
    start: int
    count: int  # of the longest sequence

    @property
    def cost(self) -> int:
        """How many tokens the time that it takes is worth."""
        return _cost(self.count * len(self.sequences))


@dataclass(frozen=True)
class Move:
    """A row of the cache that has to be copied to another one."""

    source: int
    target: int


class Scheduler(Generic[S]):
    """Keeps the sequences that wait and those that run.

    The running ones occupy the rows 0 … n - 1: first those that are decoded, so that a decode step takes the
    rows without a gap, and behind them at most one whose long prompt is computed in chunks between the decode
    steps. A step computes at most `max_prefill_tokens` tokens of prompts, padding included, so that the
    streams in flight go on; the prefills of one step follow each other, so that a prompt may copy what the one before
    has computed.
    """

    def __init__(
        self,
        max_slots: int,
        max_prefill_tokens: int,
        *,
        reusable: Callable[[S], int] = lambda _: 0,
        fits: Callable[[int, int], bool] = lambda _, __: True,
    ) -> None:
        """`reusable` tells how many tokens of a sequence need not be computed, as others of `running` have them, admitted just
        now or before, or have had them: it is then admitted alone.

        `fits` tells whether so many rows of so many tokens have a place in memory; one row always has.
        """
        self._max_slots = max_slots
        self._max_prefill_tokens = max_prefill_tokens
        self._reusable = reusable
        self._fits = fits
        self.waiting: deque[S] = deque()
        self.running: list[S] = []

    @property
    def busy(self) -> bool:
        """True if there is anything to run."""
        return bool(self.running or self.waiting)

    @property
    def decoding(self) -> list[S]:
        """The sequences that take part in a decode step; their rows are 0, 1, …"""
        return self.running[: self._decoding_count()]

    @property
    def space(self) -> tuple[int, int]:
        """Rows of the next step, and tokens of the longest one, if no other sequence is admitted."""
        return self._rows(), self._length(*self.running)

    def add(self, sequence: S) -> None:
        """Let `sequence` wait for its turn: behind those of its priority."""
        bisect.insort(self.waiting, sequence, key=lambda waiting: waiting.priority)

    def next_prefill(self, spent: int = 0) -> Prefill[S] | None:
        """The prompts to compute now, in a step whose prefills so far cost `spent`; None for no more in this step.

        The sequences admitted for it are running from now on.
        """
        budget = self._max_prefill_tokens - spent
        first_row = self._decoding_count()
        known = 0
        if first_row == len(self.running):
            known = self._admit(budget, whole=spent > 0)
        elif spent:
            return None
        sequences = tuple(self.running[first_row:])
        if not sequences:
            return None
        start = sequences[0].computed or known
        longest = max(len(sequence.context) for sequence in sequences) - start
        most = min(budget, sequences[0].chunk or budget)
        count = 0 if known and longest == 1 else min(longest, most)
        return Prefill(first_row, sequences, start, count)

    def next_to_give_up(self) -> S | None:
        """The sequence whose row is freed if memory is short: of the last priority the one that came last; never the only one."""
        found = [running for running in self.running if running.rows]
        if len(found) < 2:
            return None
        return max(found, key=lambda running: (running.priority, running.arrived))

    def put_back(self, sequence: S) -> list[Move]:
        """Let a running sequence wait again, before others of its priority; the moves that close the gap, to be made in order."""
        moves = self.remove(sequence)
        bisect.insort_left(self.waiting, sequence, key=lambda waiting: waiting.priority)
        return moves

    def remove(self, sequence: S) -> list[Move]:
        """End `sequence`, running or waiting; the moves that close the gap, to be made in order."""
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return []
        gap = self.running.index(sequence)
        moves = []
        for source in (self._decoding_count() - 1, len(self.running) - 1):
            if source > gap:
                self.running[gap] = self.running[source]
                moves.append(Move(source, gap))
                gap = source
        self.running.pop()
        return moves

    def insert(self, sequence: S) -> list[Move]:
        """Let `sequence`, whose row is among those of another, be decoded from now on; the moves that free its row, in order."""
        place = self._decoding_count()
        behind = self.running[place:]
        self.running[place:] = [sequence, *behind]
        return [Move(place + n, place + n + 1) for n in reversed(range(len(behind)))]

    def clear(self) -> list[S]:
        """End all that run, without a move, or, if none does, the first that waits; the others stay."""
        if not self.running and self.waiting:
            return [self.waiting.popleft()]
        running, self.running = self.running, []
        return running

    def _decoding_count(self) -> int:
        count = len(self.running)
        while count and not self.running[count - 1].prefilled:
            count -= 1
        return count

    def _admit(self, budget: int, *, whole: bool) -> int:
        """Let those run that fit in `budget` together, in the order of their arrival, or one: long, in chunks or partly known.

        With `whole`, also the first has to fit. The result is how many of that one's tokens are known.
        """
        admitted = longest = 0
        while self.waiting and self._has_place(self.waiting[0]):
            length = len(self.waiting[0].context)
            longest = max(longest, length)
            if admitted and (admitted + 1) * longest > budget:
                break
            known = self._reusable(self.waiting[0])
            alone = known or self.waiting[0].chunk
            if alone and admitted:
                break
            if whole and _cost(length - known if known < length - 1 else 0) > budget:
                break
            self.running.append(self.waiting.popleft())
            admitted += 1
            if alone:
                return known
        return 0

    def _has_place(self, sequence: S) -> bool:
        rows = self._rows() + sequence.rows
        if rows > self._max_slots:
            return False
        return not self.running or self._fits(rows, self._length(*self.running, sequence))

    def _rows(self) -> int:
        return sum(each.rows for each in self.running)

    def _length(self, *sequences: S) -> int:
        """Tokens of the longest row in the next step: of each its context, or what is computed, and one more."""
        return max((max(len(each.context), each.computed) for each in sequences), default=0) + 1


def _cost(tokens: int) -> int:
    return max(tokens, LEAST_COST) if tokens else 0
