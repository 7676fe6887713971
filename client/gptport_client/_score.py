"""How likely a text is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """The log-probabilities of a text's tokens, each given those before it.

    Attributes:
        token_ids: the text's tokens.
        logprobs: natural logarithms, one for each token but the first, which nothing is before.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def logprob(self) -> float:
        """Of the whole text, given its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-self.logprob / len(self.logprobs))
