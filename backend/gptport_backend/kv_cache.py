"""The slots of the KV cache and their memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_backend.element_types import NAMES
from gptport_backend.errors import LoadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_backend.manifest import CacheSpec
    from gptport_backend.memory import Buffer, Memory
    from gptport_backend.scheduler import Move

FIRST_LENGTH = 256


class KVCache:
    """A key and a value buffer `[slots, kv_heads, length, head_dim]` a layer, one slot a sequence.

    Heads and their width are a layer's own. Slots and length double when more are needed, up to `max_slots` and
    `max_length`, and go back to nothing when the engine is idle. They are not taken whole at once because scratch
    memory of the attention kernels grows with the length of the buffer, not with what is used of it.

    Never more than `budget` bytes are allocated. LoadError if a sequence of `max_length` needs more.
    """

    def __init__(
        self, spec: CacheSpec, max_slots: int, max_length: int, memory: Memory, budget: int | None = None
    ) -> None:
        if spec.dtype not in NAMES:
            raise LoadError(f"the KV cache is of dtype {spec.dtype!r}; the backend takes {', '.join(NAMES)}")
        self._spec = spec
        self._max_slots = max_slots
        self._max_length = max_length
        self._memory = memory
        self._token_bytes = spec.token_bytes
        self.budget = budget
        if not self.fits(1, max_length):
            raise LoadError(
                f"the KV cache may take {budget} bytes, and a sequence of {max_length} tokens takes "
                f"{max_length * self._token_bytes}: set kv_cache_bytes in config.pbtxt, or export with a smaller --max-length"
            )
        self.slots = 0
        self.length = 0
        self.buffers: list[Buffer] = []  # in the order of the manifest's tensors
        self.generation = 0  # counts the allocations: what was bound before may have another address now

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(buffer.shape[0] * buffer.row_bytes for buffer in self.buffers)

    def fits(self, slots: int, length: int) -> bool:
        """Whether `slots` sequences of up to `length` tokens have a place within the budget."""
        return self.budget is None or self._bytes(*self._buckets(slots, length)) <= self.budget

    def reserve(self, slots: int, length: int, used: Sequence[int]) -> None:
        """Make room for `slots` sequences of up to `length` tokens, which must fit; row i keeps its first `used[i]` tokens.

        If the memory does not suffice, the error passes on and the content is lost: call `release` then.
        """
        assert slots <= self._max_slots, (slots, self._max_slots)
        assert length <= self._max_length, (length, self._max_length)
        if slots <= self.slots and length <= self.length:
            return
        needed = self._buckets(slots, length)
        larger = max(self.slots, needed[0]), max(self.length, needed[1])
        over = self.budget is not None and self._bytes(*larger) > self.budget
        self.slots, self.length = needed if over else larger  # what nobody uses makes room
        self.generation += 1
        shapes = [(self.slots, each.heads, self.length, each.head_dim) for each in self._spec.tensors]
        if not self.buffers:
            self.buffers = [self._memory.allocate(shape, self._spec.dtype) for shape in shapes]
            return
        for index, old in enumerate(self.buffers):  # one at a time: old and new never exist twice over
            new = self._memory.allocate(shapes[index], self._spec.dtype)
            for row, count in enumerate(used):
                if count:
                    self._memory.copy(old, row, new, row, count)
            self.buffers[index] = new

    def move(self, move: Move, used: int) -> None:
        """Copy the first `used` tokens of one row over another."""
        for buffer in self.buffers:
            self._memory.copy(buffer, move.source, buffer, move.target, used)

    def release(self) -> None:
        """Give all memory back."""
        self.buffers = []
        self.slots = self.length = 0
        self.generation += 1

    def _buckets(self, slots: int, length: int) -> tuple[int, int]:
        return _bucket(slots, 1, self._max_slots), _bucket(length, FIRST_LENGTH, self._max_length)

    def _bytes(self, slots: int, length: int) -> int:
        return slots * length * self._token_bytes


def _bucket(needed: int, first: int, most: int) -> int:
    size = first
    while size < needed:
        size *= 2
    return min(size, most)
