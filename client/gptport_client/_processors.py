"""What a caller may do with the logits before a token is chosen from them, in the client's own loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptport_client._errors import InvalidRequest

if TYPE_CHECKING:
    from gptport_client._sampling import Logits

# (ids of prompt and answer so far `[n]`, logits `[vocab]`, its own copy) → logits `[vocab]`.
Processor: TypeAlias = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]


def check_processors(processors: Sequence[Processor]) -> tuple[Processor, ...]:
    """The processors as a tuple.

    Raises:
        InvalidRequest: one cannot be called.
    """
    for index, processor in enumerate(processors):
        if not callable(processor):
            raise InvalidRequest(
                f"processors[{index}] is a {type(processor).__name__}; give a function of token ids and logits"
            )
    return tuple(processors)


def process(logits: Logits, ids: Sequence[int], processors: Sequence[Processor]) -> Logits:
    """`logits [vocab]` after all processors, in order.

    Raises:
        InvalidRequest: one returned something else than `[vocab]` numbers.
    """
    if not processors:
        return logits
    so_far = np.asarray(ids, np.int64)
    for index, processor in enumerate(processors):
        processed = np.asarray(processor(so_far, logits.copy()), np.float32)
        if processed.shape != logits.shape:
            raise InvalidRequest(
                f"processors[{index}] returned the shape {processed.shape}; it must be {logits.shape}"
            )
        logits = processed
    return logits


def from_transformers(processor: Any) -> Processor:
    """A logits processor of transformers (or a `LogitsProcessorList`), to be given in `processors`; needs torch."""
    import torch

    def adapted(ids: NDArray[np.int64], logits: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = processor(torch.from_numpy(ids)[None], torch.from_numpy(logits)[None])
        return np.asarray(scores[0].numpy(), np.float32)

    return adapted
