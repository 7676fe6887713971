"""How likely a text is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gptport_client._sampling import Logits


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


def logprob(logits: Logits, token: int) -> float:
    """The log-probability of `token` by `logits [vocab]`, computed in float64."""
    wide = logits.astype(np.float64)
    top = wide.max()
    return float(wide[token] - top - np.log(np.exp(wide - top).sum()))
