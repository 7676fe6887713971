"""Tokens drawn where the logits are, by sampler.onnx: numbers for each row go to the device, and a token for each comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import onnxruntime

from gptport_backend.sampling import Draw

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from gptport_backend.memory import Memory
    from gptport_backend.processors import Change

# Those in front of what scales are one group of inputs of the graph, and those behind it are another.
Group: TypeAlias = Literal["first", "scaled", "last"]
INPUTS: dict[Group, tuple[str, str]] = {
    "first": ("first_at", "first"),
    "scaled": ("scaled_at", "scales"),
    "last": ("last_at", "last"),
}


class DeviceSampler:
    """Has the logits of a step, up to `rows`, in memory of the device, where the model's graph puts them."""

    def __init__(
        self, session: onnxruntime.InferenceSession, memory: Memory, rows: int, vocab: int, dtype: str
    ) -> None:
        self._session = session
        self._memory = memory
        self._vocab = vocab
        self._dtype = np.dtype(dtype).type
        self._logits = memory.allocate((rows, 1, 1, vocab), dtype)

    def bind_logits(self, bind: Any, name: str, rows: int) -> None:
        """Bind the first `rows` of the logits to an input or an output of a graph."""
        shape = (rows, self._vocab)
        bind(name, self._memory.device, self._memory.device_id, self._dtype, shape, self._logits.address)

    def read(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Those rows, `[len(rows), vocab]`, on the host."""
        found = np.empty((len(rows), self._vocab), np.float32)
        for place, row in enumerate(rows):
            found[place] = self._memory.read(self._logits, row, self._dtype)
        return found

    def draw(self, draws: Mapping[int, Draw], rows: int) -> dict[int, tuple[int, float]]:
        """Row, one of the first `rows` → its token, and that one's logit."""
        numbers = np.array([self._numbers(draws.get(row, Draw())) for row in range(rows)], np.float64)
        most = np.array([int(numbers[:, 2].max())], np.int64)
        binding = self._session.io_binding()
        self.bind_logits(binding.bind_input, "logits", rows)
        held: dict[str, NDArray[Any]] = {"draws": numbers, "most": most}
        for group, changes in grouped(draws).items():
            held |= zip(INPUTS[group], _flat(changes), strict=True)
        for name, array in held.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        drawn = np.empty((rows, 2), np.float64)
        binding.bind_output("drawn", "cpu", 0, drawn.dtype.type, drawn.shape, drawn.ctypes.data)
        self._session.run_with_iobinding(binding)
        return {row: (int(drawn[row, 0]), float(drawn[row, 1])) for row in draws}

    def _numbers(self, draw: Draw) -> tuple[float, ...]:
        return draw.u, draw.temperature, min(draw.top_k or self._vocab, self._vocab), draw.top_p, draw.min_p


def grouped(draws: Mapping[int, Draw]) -> dict[Group, list[tuple[int, Change]]]:
    """The changes by the group of inputs that takes them, each with its row.

    Of two that change the same logit, the order matters, and in a group there is none. So the first of a row, which may be
    its `logit_bias`, is for itself. Behind the penalties are only those that forbid.
    """
    groups: dict[Group, list[tuple[int, Change]]] = {}
    for row, draw in draws.items():
        for place, change in enumerate(draw.changes):
            group: Group = "scaled" if change.scales else "last" if place else "first"
            if change.ids.size:
                groups.setdefault(group, []).append((row, change))
    return groups


def _flat(changes: Iterable[tuple[int, Change]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where, `[n, 2]` (row, token), and what, `[n]`."""
    at = [np.column_stack((np.full(change.ids.size, row), change.ids)) for row, change in changes]
    return np.concatenate(at), np.concatenate([change.values for _, change in changes])
