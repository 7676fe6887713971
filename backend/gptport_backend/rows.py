"""The rows of the KV cache, moved as the scheduler moves the sequences: row i is of `running[i]`, once settled."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gptport_backend.scheduler import Move

if TYPE_CHECKING:
    from gptport_backend.adapters import Adapter
    from gptport_backend.beams import BeamSearch
    from gptport_backend.generation import Generation
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.prefix_cache import PrefixCache
    from gptport_backend.runner import Runner
    from gptport_backend.scheduler import Scheduler

log = logging.getLogger(__name__)


class Rows:
    """Keeps the cache's content with its sequences, and what is worth it of those that end.

    What is copied when sequences leave is copied by `settle`: after all tokens of a step are passed on, and once only
    for a row that takes the place of several.
    """

    def __init__(
        self, scheduler: Scheduler[Generation], cache: KVCache, prefixes: PrefixCache, runner: Runner
    ) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._prefixes = prefixes
        self._runner = runner
        # Until they are settled: what is to be kept, by tokens, row and adapter; row → a later one that has its content.
        self._kept: list[tuple[tuple[int, ...], int, Adapter | None]] = []
        self._sources: dict[int, int] = {}

    def reserve(self, length: int, more: int = 0) -> list[int]:
        """Make room for rows of that length, and for so many `more`, with their adapters; how many tokens each has already."""
        self.settle()
        running = self._scheduler.running
        used = [generation.computed for generation in running]
        self._cache.reserve(len(used) + more, max(length, *used), used)
        self._runner.use([generation.adapter for generation in running])
        return used

    def keep(self, generation: Generation) -> None:
        """Keep what was computed of a running sequence for those that begin alike, if there is memory for it."""
        if generation.computed:
            row = self._scheduler.running.index(generation)
            tokens = generation.tokens[: generation.computed]
            self._kept.append((tokens, self._sources.get(row, row), generation.adapter))

    def settle(self) -> None:
        """Copy what is to be kept, then each row to its place; nothing else may touch the cache before."""
        kept, self._kept = self._kept, []
        try:
            for tokens, row, adapter in kept:
                self._prefixes.keep(tokens, self._cache, row, adapter)
        except Exception:  # nobody depends on it
            log.exception("keys and values could not be kept for prompts that begin alike")
            self._prefixes.clear()
        # The first rows first: what lies where a row goes to belongs to one before it.
        for row, source in sorted(self._sources.items()):
            self._cache.move(Move(source, row), self._scheduler.running[row].computed)
        self._sources = {}

    def release(self) -> None:
        """Forget all content, which can't be trusted."""
        self._kept, self._sources = [], {}
        self._cache.release()

    def remove(self, generation: Generation) -> None:
        """Free the row of a sequence that has ended, and those of its beams; it may also only have waited."""
        self._drop_beams(generation)
        self._close_gap(self._scheduler.remove(generation))

    def put_back(self, generation: Generation) -> None:
        """Free the row of a sequence, and those of its beams, and let it wait again."""
        self._drop_beams(generation)
        self._close_gap(self._scheduler.put_back(generation))
        generation.give_up_row()

    def follow(self, search: BeamSearch) -> None:
        """After a step of a beam search, let the rows of its beams be those of the hypotheses that live on."""
        self.settle()
        running = self._scheduler.running
        for copy in search.copies:
            if copy.target not in running:
                self.reserve(search.computed, more=1)
                for move in self._scheduler.insert(copy.target):
                    self._cache.move(move, running[move.target].computed)
            move = Move(running.index(copy.source), running.index(copy.target))
            self._cache.move(move, search.computed)

    def _drop_beams(self, generation: Generation) -> None:
        for beam in generation.search.others if generation.search else ():
            self._close_gap(self._scheduler.remove(beam))

    def _close_gap(self, moves: list[Move]) -> None:
        for move in moves:
            self._sources[move.target] = self._sources.pop(move.source, move.source)
        rows = len(self._scheduler.running)
        self._sources = {row: source for row, source in self._sources.items() if row < rows}
