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

# Sorting a whole vocabulary costs milliseconds. The token drawn is nearly always among those whose scaled logit is
# near the largest one: these are sorted first, and more only where they do not decide.
MARGINS = (6.0, 12.0, float("inf"))


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
        top_k = min(self._parameters.top_k or scaled.size, scaled.size)
        return _draw(scaled, top_k, self._parameters.top_p, u)


def sample(logits: FloatArray, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row of `logits [batch, vocab]`."""
    tokens: list[int] = logits.argmax(axis=1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.greedy:
            tokens[row] = sampler.draw(logits[row].astype(np.float32, copy=False))
    return tokens


def _draw(scaled: NDArray[np.float32], top_k: int, top_p: float, u: float) -> int:
    top = float(scaled.max())
    total = float(_weights(scaled, top).sum())
    for margin in MARGINS:
        order = likeliest(scaled, top - margin)[:top_k]
        weights = _weights(scaled[order], top)
        if order.size == top_k:
            return int(order[_choose(np.cumsum(weights) / weights.sum(), top_p, u)])
        cumulative = np.cumsum(weights) / total
        if top_k == scaled.size and top_p == 1 and cumulative[-1] > u:  # all are kept, and their sum is 1
            return int(order[np.searchsorted(cumulative, u, side="right")])
        if top_k == scaled.size and top_p < 1 and cumulative[-1] >= top_p:
            return int(order[_choose(cumulative, top_p, u)])
    raise AssertionError("the last margin takes all tokens")


def likeliest(scaled: NDArray[np.float32], threshold: float) -> TokenArray:
    """The ids of the values from `threshold` up, largest first, the lower id first among equals."""
    candidates = np.flatnonzero(scaled >= np.float32(threshold))
    return candidates[np.argsort(-scaled[candidates], kind="stable")]


def _weights(scaled: NDArray[np.float32], top: float) -> NDArray[np.float64]:
    """Softmax in float64, not yet divided by its sum."""
    weights: NDArray[np.float64] = np.exp(scaled.astype(np.float64) - top)
    return weights


def _choose(cumulative: NDArray[np.float64], top_p: float, u: float) -> int:
    """Index of the token at `u`, of those up to the first where `cumulative` reaches `top_p`."""
    last = min(int(np.searchsorted(cumulative, top_p)), cumulative.size - 1)
    return min(int(np.searchsorted(cumulative, u * cumulative[last], side="right")), last)
