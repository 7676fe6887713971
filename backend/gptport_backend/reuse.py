"""Where the beginning of a prompt is computed already: in a row that runs, or of a sequence that has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptport_backend.prefix_cache import FEWEST_TOKENS, Kept, common
from gptport_backend.scheduler import Move

if TYPE_CHECKING:
    from gptport_backend.generation import Generation
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.prefix_cache import PrefixCache


@dataclass(frozen=True)
class Found:
    """The first `count` tokens of a prompt are in the row of a sequence, or kept."""

    source: Generation | Kept
    count: int


class Reuse:
    """Finds what is known of a prompt, and copies it to its row. `running` is the list whose indices are the rows."""

    def __init__(self, cache: KVCache, prefixes: PrefixCache) -> None:
        self._cache = cache
        self._prefixes = prefixes

    def find(self, generation: Generation, running: list[Generation]) -> int:
        """How many tokens need not be computed; never the last one, whose logits are wanted.

        What was admitted in the same step and is not computed yet counts too: it will be, before `fill` is called.
        """
        if generation.chunk is not None:  # something is wanted of each of its tokens
            return 0
        wanted = generation.context_ids[:-1]
        found = [Found(other, _shared(generation, other)) for other in running]
        if kept := self._prefixes.find(wanted, generation.adapter):
            found.append(Found(*kept))
        best = max(found, key=lambda each: each.count, default=None)
        worth = best and (best.count >= FEWEST_TOKENS or 0 < best.count == wanted.size)
        generation.found = best if worth else None
        return generation.found.count if generation.found else 0

    def fill(self, generation: Generation, running: list[Generation]) -> int:
        """Copy what was found to the row of a sequence that was just admitted; how many tokens."""
        found, generation.found = generation.found, None
        if found is None:
            return 0
        row = running.index(generation)
        if isinstance(found.source, Kept):
            self._prefixes.fill(found.source, found.count, self._cache, row)
        else:
            self._cache.move(Move(running.index(found.source), row), found.count)
        generation.computed = found.count
        return found.count


def _shared(generation: Generation, other: Generation) -> int:
    if other.adapter is not generation.adapter:
        return 0
    there = other.computed or other.context_ids.size
    return common(generation.context_ids[:-1], other.context_ids[:there])
