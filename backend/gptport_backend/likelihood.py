"""How likely tokens are, by the model's own logits: those of an answer, and those of a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptport_backend.ranking import likeliest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Logprobs:
    """Of one token, the natural logarithm of its probability, and the likeliest tokens with theirs."""

    token: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]

    @classmethod
    def of(cls, logits: NDArray[np.float32], token: int, top: int) -> Logprobs:
        """Of `token`, and of the `top` likeliest, by `logits [vocab]`.

        The exponentials are in float32, many times faster; their sum is not, so that the error is some 1e-7.
        ArithmeticError if the logits are no numbers.
        """
        largest = float(logits.max())
        weights = logits - np.float32(largest)
        total = largest + float(np.log(np.exp(weights, out=weights).sum(dtype=np.float64)))
        if not np.isfinite(total):
            raise ArithmeticError("the model computed logits that are not finite numbers")
        ids = likeliest(logits, top)
        values = logits[ids].astype(np.float64) - total
        return cls(float(logits[token]) - total, tuple(ids.tolist()), tuple(values.tolist()))


class PromptScore:
    """The log-probabilities of a prompt's tokens but the first, and of the `top` likeliest at each place, as they come."""

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        self._prompt = prompt
        self._top = top
        self.logprobs: list[Logprobs] = []

    @property
    def complete(self) -> bool:
        """True once there is one for each token but the first."""
        return len(self.logprobs) >= len(self._prompt) - 1

    def add(self, start: int, logits: Iterable[NDArray[Any]]) -> None:
        """Take the logits of the tokens from `start` on: each row is of the token behind it. What is known is left as it is."""
        for place, row in enumerate(logits, start + 1):
            if len(self.logprobs) + 1 == place < len(self._prompt):
                values = row.astype(np.float32, copy=False)
                self.logprobs.append(Logprobs.of(values, self._prompt[place], self._top))
