"""Logits to tokens, as docs/protocol.md says under "Sampling, exactly"; the greedy rows all at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_backend.request import SamplingParameters

FloatArray: TypeAlias = NDArray[np.floating[Any]]
TokenArray: TypeAlias = NDArray[np.int64]

# Sorting a whole vocabulary costs milliseconds. The token drawn is nearly always among the likeliest few, so
# these are sorted first, and all of them only where that cannot decide.
FIRST_LOOK = 1024


class Sampler:
    """Draws the tokens of one request; keeps its random numbers, one for each token."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self._parameters = parameters
        self._random = np.random.Generator(np.random.Philox(key=parameters.seed))

    @property
    def greedy(self) -> bool:
        """True if the token is simply the likeliest one."""
        return self._parameters.temperature == 0

    def draw(self, logits: NDArray[np.float32]) -> int:
        """One token id from `logits [vocab]`, float32."""
        u = float(self._random.random())
        with np.errstate(over="ignore"):
            scaled = logits / np.float32(self._parameters.temperature)
        if not np.isfinite(scaled.max()):  # a temperature so small that the quotient overflows is greedy
            return int(logits.argmax())
        return _draw(scaled, self._parameters.top_k or scaled.size, self._parameters.top_p, u)


def sample(logits: FloatArray, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row of `logits [batch, vocab]`."""
    tokens: list[int] = logits.argmax(axis=1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.greedy:
            tokens[row] = sampler.draw(logits[row].astype(np.float32, copy=False))
    return tokens


def _draw(scaled: NDArray[np.float32], top_k: int, top_p: float, u: float) -> int:
    weights = np.exp(scaled.astype(np.float64) - float(scaled.max()))
    if top_k < scaled.size:
        order = likeliest(scaled, top_k)
        return int(order[_choose(np.cumsum(weights[order]) / weights[order].sum(), top_p, u)])
    total = weights.sum()
    order = likeliest(scaled, FIRST_LOOK)
    cumulative = np.cumsum(weights[order]) / total
    if cumulative[-1] >= top_p:
        return int(order[_choose(cumulative, top_p, u)])
    if top_p == 1 and cumulative[-1] > u:
        return int(order[np.searchsorted(cumulative, u, side="right")])
    order = likeliest(scaled, scaled.size)
    return int(order[_choose(np.cumsum(weights[order]) / total, top_p, u)])


def _choose(cumulative: NDArray[np.float64], top_p: float, u: float) -> int:
    """Index of the token at `u`, of those up to the first where `cumulative` reaches `top_p`."""
    last = min(int(np.searchsorted(cumulative, top_p)), cumulative.size - 1)
    return min(int(np.searchsorted(cumulative, u * cumulative[last], side="right")), last)


def likeliest(scaled: NDArray[np.float32], count: int) -> TokenArray:
    """The ids of the `count` largest values, largest first, the lower id first among equals."""
    if count >= scaled.size:
        return np.argsort(-scaled, kind="stable")
    threshold = np.partition(scaled, scaled.size - count)[scaled.size - count]
    candidates = np.flatnonzero(
        scaled >= threshold
    )  # ascending ids; more than `count` if the last ones are equal
    return candidates[np.argsort(-scaled[candidates], kind="stable")][:count]
