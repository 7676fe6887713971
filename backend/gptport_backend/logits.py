"""The logits of a step, where the graph left them: on the host, or on a device that draws tokens from them itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from gptport_backend.device_sampling import DeviceSampler
    from gptport_backend.sampling import Draw


class HostLogits:
    """Logits `[rows, vocab]` of a step in an array on the host, valid until the next step."""

    def __init__(self, array: NDArray[Any]) -> None:
        self._array = array.astype(np.float32, copy=False)

    def on_host(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Those rows, `[len(rows), vocab]`, which may be changed; the array itself, if all its rows are wanted."""
        everything = len(rows) == len(self._array) and all(row == place for place, row in enumerate(rows))
        return self._array if everything else self._array[list(rows)]


class DeviceLogits:
    """The first `rows` of the logits that the sampler of a device has in its memory, valid until the next step."""

    def __init__(self, sampler: DeviceSampler, rows: int) -> None:
        self._sampler = sampler
        self._rows = rows

    def on_host(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Copies of those rows, `[len(rows), vocab]`."""
        return self._sampler.read(rows)

    def draw(self, draws: Mapping[int, Draw]) -> dict[int, tuple[int, float]]:
        """Row → its token, and that one's logit, not a finite number if there is none to draw."""
        return self._sampler.draw(draws, self._rows)


StepLogits: TypeAlias = HostLogits | DeviceLogits
