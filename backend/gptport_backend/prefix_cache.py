"""Keys and values of sequences that have ended, for prompts that begin alike: a chat's history, a system prompt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gptport_backend.adapters import Adapter
    from gptport_backend.kv_cache import KVCache
    from gptport_backend.manifest import CacheSpec
    from gptport_backend.memory import Buffer, Memory

    TokenArray = NDArray[np.int64]

FEWEST_TOKENS = 32  # below, computing is about as fast as copying


@dataclass(frozen=True, eq=False)
class Kept:
    """The keys and values of `tokens [n]`, with an adapter or none.

    Tensors of one shape have a buffer together; `places` has the buffer and its row for each of the manifest's tensors.
    """

    tokens: TokenArray
    adapter: Adapter | None
    buffers: tuple[Buffer, ...]
    places: tuple[tuple[Buffer, int], ...]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.shape[0] * buffer.row_bytes for buffer in self.buffers)


class PrefixCache:
    """Keeps at most `limit` bytes; what was not used for the longest time goes first.

    Entries are few and long, so that each is compared with a prompt: a microsecond or so.
    """

    def __init__(self, spec: CacheSpec, memory: Memory, limit: int) -> None:
        self._spec = spec
        self._memory = memory
        self._limit = limit
        self._kept: list[Kept] = []  # the one used last is the last
        self._token_bytes = spec.token_bytes

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(kept.bytes for kept in self._kept)

    def find(self, prompt: TokenArray, adapter: Adapter | None = None) -> tuple[Kept, int] | None:
        """The entry that `prompt` has most in common with, and how many tokens; None if they are too few."""
        found = max(self._of(adapter), key=lambda kept: common(kept.tokens, prompt), default=None)
        count = common(found.tokens, prompt) if found else 0
        if found is None or count < FEWEST_TOKENS:
            return None
        self._touch(found)
        return found, count

    def keep(self, tokens: Sequence[int], cache: KVCache, row: int, adapter: Adapter | None = None) -> None:
        """Copy the keys and values of `tokens` from a row of the cache, unless they are too few, too many, or kept already."""
        array = np.asarray(tokens, np.int64)
        if array.size < FEWEST_TOKENS or array.size * self._token_bytes > self._limit:
            return
        beginnings = []  # of these tokens, which take their place
        for kept in self._of(adapter):
            if common(kept.tokens, array) == array.size:
                self._touch(kept)
                return
            if common(kept.tokens, array) == kept.tokens.size:
                beginnings.append(kept)
        self._kept = [kept for kept in self._kept if kept not in beginnings]
        while self.bytes + array.size * self._token_bytes > self._limit:
            del self._kept[0]
        kept = self._new(array, adapter)
        for (buffer, place), source in zip(kept.places, cache.buffers, strict=True):
            self._memory.copy(source, row, buffer, place, array.size)
        self._kept.append(kept)

    def fill(self, kept: Kept, count: int, cache: KVCache, row: int) -> None:
        """Copy the first `count` tokens of an entry to a row of the cache."""
        for (buffer, place), target in zip(kept.places, cache.buffers, strict=True):
            self._memory.copy(buffer, place, target, row, count)

    def clear(self) -> None:
        """Keep nothing of what is there."""
        self._kept = []

    def _new(self, tokens: TokenArray, adapter: Adapter | None) -> Kept:
        shapes = [(each.heads, each.head_dim) for each in self._spec.tensors]
        buffers = {
            (heads, head_dim): self._memory.allocate((count, heads, tokens.size, head_dim), self._spec.dtype)
            for (heads, head_dim), count in Counter(shapes).items()
        }
        places = [(buffers[shape], shapes[:i].count(shape)) for i, shape in enumerate(shapes)]
        return Kept(tokens, adapter, tuple(buffers.values()), tuple(places))

    def _of(self, adapter: Adapter | None) -> list[Kept]:
        return [kept for kept in self._kept if kept.adapter is adapter]

    def _touch(self, kept: Kept) -> None:
        self._kept = [each for each in self._kept if each is not kept] + [kept]


def common(first: TokenArray, second: TokenArray) -> int:
    """How many tokens two sequences begin with alike."""
    shorter = min(first.size, second.size)
    different = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(different[0]) if different.size else shorter
