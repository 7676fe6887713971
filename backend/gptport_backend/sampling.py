"""Logits to tokens, as docs/protocol.md says under "Sampling, exactly"; the greedy rows all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptport_backend.processors import ALLOW_ALL, Forbidden, History, Logits, steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_backend.request import SamplingParameters

TokenArray: TypeAlias = NDArray[np.int64]

# Sorting a whole vocabulary costs milliseconds. The token drawn is nearly always among those whose scaled logit is
# near the largest one: these are sorted first, and more only where they do not decide.
MARGINS = (6.0, 12.0, float("inf"))


@dataclass(frozen=True)
class Logprobs:
    """Of one token, the natural logarithm of its probability, and the likeliest tokens with theirs."""

    token: float
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


class Sampler:
    """Draws the tokens of one request; keeps its random numbers, one for each token, and what was drawn."""

    def __init__(
        self,
        parameters: SamplingParameters,
        prompt: Sequence[int] = (),
        forbidden: Forbidden = ALLOW_ALL,
    ) -> None:
        self._parameters = parameters
        self._random = np.random.Generator(np.random.Philox(key=parameters.seed))
        self._history = History(prompt)
        self._steps = steps(parameters, forbidden, self._history)
        self._raw: NDArray[np.float64] | None = None
        self.logprobs: list[Logprobs] = []  # one for each token, if they were asked for

    @property
    def greedy(self) -> bool:
        """True if the token is simply the likeliest one."""
        return self._parameters.temperature == 0

    def adjust(self, logits: Logits) -> None:
        """Take the logarithms of the probabilities, then change `logits [vocab]` in place as the request asks for."""
        if self._parameters.logprobs is not None:
            self._raw = _log_softmax(logits)
        for step in self._steps:
            step(logits)

    def draw(self, logits: Logits) -> int:
        """One token id from `logits [vocab]`, adjusted."""
        u = float(self._random.random())
        with np.errstate(over="ignore"):
            scaled = logits / np.float32(self._parameters.temperature)
        if not np.isfinite(scaled.max()):  # a temperature so small that the quotient overflows is greedy
            return int(logits.argmax())
        return _draw(scaled, self._parameters, u)

    def append(self, token: int) -> None:
        """Take note of the token that came of it."""
        self._history.append(token)
        if self._raw is not None:
            top = _largest(self._raw, self._parameters.logprobs or 0)
            self.logprobs.append(
                Logprobs(float(self._raw[token]), tuple(top.tolist()), tuple(self._raw[top].tolist()))
            )


def sample(logits: Logits, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row of `logits [batch, vocab]`, which are adjusted in place: -inf is what must not come."""
    for row, sampler in zip(logits, samplers, strict=True):
        sampler.adjust(row)
    tokens: list[int] = logits.argmax(axis=1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.greedy:
            tokens[row] = sampler.draw(logits[row])
        sampler.append(tokens[row])
    return tokens


def likeliest(values: NDArray[np.float32], threshold: float, most: int | None = None) -> TokenArray:
    """The ids of the values from `threshold` up, largest first, the lower id first among equals; at most `most`."""
    candidates = np.flatnonzero(values >= np.float32(threshold))
    return candidates[np.argsort(-values[candidates], kind="stable")][:most]


def _draw(scaled: Logits, parameters: SamplingParameters, u: float) -> int:
    """The token at `u`, looked for among the likeliest ones first."""
    top = float(scaled.max())
    top_k = min(parameters.top_k or scaled.size, scaled.size)
    # In float32, many times faster: the errors of thousands of values, 1e-7 of each, leave some 1e-9 of the sum.
    total = np.exp(scaled - np.float32(top)).sum(dtype=np.float64) if top_k == scaled.size else np.inf
    for margin in MARGINS:
        order = likeliest(scaled, top - margin, top_k)
        weights = np.exp(scaled[order].astype(np.float64) - top)
        complete = order.size == top_k
        cumulative = np.cumsum(weights) / (weights.sum() if complete else total)
        if complete or _decided(cumulative, weights, parameters):
            return int(order[_choose(cumulative, weights, parameters, u)])
        if parameters.keeps_all and cumulative[-1] > u:  # the sum of all is 1
            return int(order[np.searchsorted(cumulative, u, side="right")])
    raise AssertionError("the last margin takes all tokens")


def _decided(
    cumulative: NDArray[np.float64], weights: NDArray[np.float64], parameters: SamplingParameters
) -> bool:
    """True if top_p and min_p keep none but these likeliest tokens."""
    if not cumulative[-1]:  # the sum of all is not known: top_k would keep more than these
        return False
    reached = parameters.top_p < 1 and cumulative[-1] >= parameters.top_p
    return bool(reached or weights[-1] < parameters.min_p)


def _choose(
    cumulative: NDArray[np.float64],
    weights: NDArray[np.float64],
    parameters: SamplingParameters,
    u: float,
) -> int:
    """Index of the token at `u`, of those that top_p, min_p and typical_p keep."""
    reached = int(np.searchsorted(cumulative, parameters.top_p)) + 1
    likely = int(np.count_nonzero(weights >= parameters.min_p))
    cumulative = cumulative[: max(1, min(reached, likely))]
    if parameters.typical_p == 1:
        return _at(cumulative, u)
    kept = _typical(weights[: cumulative.size], parameters.typical_p)
    return int(kept[_at(np.cumsum(weights[kept]), u)])


def _at(cumulative: NDArray[np.float64], u: float) -> int:
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), cumulative.size - 1)


def _typical(weights: NDArray[np.float64], typical_p: float) -> TokenArray:
    """Indices of those nearest to the expected surprise that reach `typical_p`: Meister et al. 2022."""
    probabilities = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = np.nansum(probabilities * surprise)
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = int(np.searchsorted(np.cumsum(probabilities[order]), typical_p)) + 1
    return np.sort(order[:reached])


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return logarithms


def _largest(values: NDArray[np.float64], count: int) -> TokenArray:
    """Ids of the `count` largest values, largest first, the lower id first among equals."""
    if not count:
        return np.empty(0, np.int64)
    least = np.partition(values, max(values.size - count, 0))[max(values.size - count, 0)]
    candidates = np.flatnonzero(values >= least)
    return candidates[np.argsort(-values[candidates], kind="stable")][:count]
