"""The rows of the KV cache, moved as the scheduler moves the sequences: row i is of `running[i]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_backend.scheduler import Move

if TYPE_CHECKING:
    from gptport_backend.beams import BeamSearch
    from gptport_backend.generation import Generation
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.runner import Runner
    from gptport_backend.scheduler import Scheduler


class Rows:
    """Keeps the cache's content with its sequences."""

    def __init__(self, scheduler: Scheduler[Generation], cache: KVCache, runner: Runner) -> None:
        self._scheduler = scheduler
        self._cache = cache
        self._runner = runner

    def reserve(self, length: int, more: int = 0) -> list[int]:
        """Make room for rows of that length, and for so many `more`, with their adapters; how many tokens each has already."""
        running = self._scheduler.running
        used = [generation.computed for generation in running]
        self._cache.reserve(len(used) + more, max(length, *used), used)
        self._runner.use([generation.adapter for generation in running])
        return used

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
        running = self._scheduler.running
        for copy in search.copies:
            if copy.target not in running:
                self.reserve(search.computed, more=1)
                self._close_gap(self._scheduler.insert(copy.target))
            move = Move(running.index(copy.source), running.index(copy.target))
            self._cache.move(move, search.computed)
        for beam in search.dropped:
            self._close_gap(self._scheduler.remove(beam))

    def _drop_beams(self, generation: Generation) -> None:
        for beam in generation.search.others if generation.search else ():
            self._close_gap(self._scheduler.remove(beam))

    def _close_gap(self, moves: list[Move]) -> None:
        for move in moves:
            self._cache.move(move, self._scheduler.running[move.target].computed)
