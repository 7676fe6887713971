"""Several adapters in one run of the graph: their matrices side by side, and for each row which of them are its own.

onnxruntime's active adapters (`RunOptions.add_active_adapter`) have no effect on a run with bound inputs, and would be the same
for all rows; so the matrices are bound as the optional inputs that they are. With those of k adapters side by side, the product
x · [down₁ … downₖ], 0 where a column is not the row's own, times [up₁; …; upₖ] is what the row's adapter adds: others add 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gptport_backend.adapters import Adapter
    from gptport_backend.manifest import AdaptedProjection
    from gptport_backend.memory import Memory

Rows = tuple["Adapter | None", ...]


class SideBySide:
    """The adapters that the rows of the cache use, on the device.

    Attributes:
        generation: counts the changes: what was bound before is of other adapters.
    """

    def __init__(self, projections: tuple[AdaptedProjection, ...], memory: Memory) -> None:
        self._projections = projections
        self._memory = memory
        self._adapters: tuple[Adapter, ...] = ()
        self._values: dict[str, onnxruntime.OrtValue] = {}
        self._ranks: dict[str, tuple[int, ...]] = {}  # input for the rows → columns of each adapter
        self.generation = 0

    def use(self, rows: Sequence[Adapter | None]) -> None:
        """Have the adapters of all rows there; those that no row uses stay until others are needed, or none."""
        needed = tuple(dict.fromkeys(adapter for adapter in rows if adapter is not None))
        if needed == self._adapters or (needed and set(needed) <= set(self._adapters)):
            return
        self._adapters = needed
        self._values, self._ranks = {}, {}
        self.generation += 1
        for each in self._projections:
            self._place(each, [adapter for adapter in needed if each.down in adapter.matrices])

    def bind(self, binding: onnxruntime.IOBinding, rows: Rows) -> list[Any]:
        """Bind what these rows need; the result must live as long as the binding."""
        if not any(rows):
            return []
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
        if set(rows) == set(self._adapters) and len(self._adapters) == 1:  # all columns are everyone's
            return []
        own = np.array([[adapter is each for each in self._adapters] for adapter in rows])
        masks = {ranks: self._value(_mask(own, ranks)) for ranks in set(self._ranks.values())}
        for name, ranks in self._ranks.items():
            binding.bind_ortvalue_input(name, masks[ranks])
        return [*masks.values()]

    def _place(self, projection: AdaptedProjection, adapters: list[Adapter]) -> None:
        if not adapters:
            return
        downs = [adapter.matrices[projection.down] for adapter in adapters]
        ups = [adapter.matrices[projection.up] for adapter in adapters]
        self._values[projection.down] = self._value(_joined(downs, 1))
        self._values[projection.up] = self._value(_joined(ups, 0))
        ranks = {adapter: down.shape[1] for adapter, down in zip(adapters, downs, strict=True)}
        self._ranks[projection.rows] = tuple(ranks.get(adapter, 0) for adapter in self._adapters)

    def _value(self, array: NDArray[Any]) -> onnxruntime.OrtValue:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self._memory.device, self._memory.device_id)


def _joined(parts: list[NDArray[Any]], axis: int) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.ascontiguousarray(np.concatenate(parts, axis))


def _mask(own: NDArray[np.bool_], ranks: tuple[int, ...]) -> NDArray[np.bool_]:
    """[rows, 1, rank] from [rows, adapters]."""
    return np.ascontiguousarray(np.repeat(own, ranks, axis=1)[:, np.newaxis])
