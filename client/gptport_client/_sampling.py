"""Logits to tokens, exactly as docs/protocol.md says, so that both loops give the same tokens for a seed."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from gptport_client._errors import ServerError

if TYPE_CHECKING:
    from gptport_client._params import SamplingParams

Logits: TypeAlias = NDArray[np.float32]

# Sorting a whole vocabulary takes milliseconds, and the token drawn is nearly always among the likeliest few.
FIRST_LOOK = 1024


class Sampler:
    """Draws the tokens of one request; has a random number for each."""

    def __init__(self, params: SamplingParams) -> None:
        # What crosses the wire is float32; the loop here rounds alike.
        self._temperature = np.float32(params.temperature)
        self._top_p = float(np.float32(params.top_p))
        self._top_k = int(params.top_k)
        seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.Philox(key=seed))

    def draw(self, logits: Logits) -> int:
        """The next token.

        Args:
            logits: `[vocab]`, float32.

        Raises:
            ServerError: a logit is not a number.
        """
        if np.isnan(logits).any():
            raise ServerError(
                "the model computed logits that are not numbers (NaN); export it in a wider precision"
            )
        if self._temperature == 0:
            return int(logits.argmax())
        u = float(self._random.random())
        with np.errstate(over="ignore"):
            scaled = logits / self._temperature
        if not np.isfinite(scaled.max()):  # so small a temperature that the quotient overflows is greedy
            return int(logits.argmax())
        return _choose(scaled, self._top_k or scaled.size, self._top_p, u)


def _choose(scaled: Logits, top_k: int, top_p: float, u: float) -> int:
    """The token at `u` among the `top_k` likeliest, cut to `top_p`."""
    weights = np.exp(scaled.astype(np.float64) - float(scaled.max()))
    if top_k < scaled.size:
        kept = likeliest(scaled, top_k)
        return int(kept[_position(np.cumsum(weights[kept]) / weights[kept].sum(), top_p, u)])
    for count in (FIRST_LOOK, scaled.size):
        kept = likeliest(scaled, count)
        cumulative = np.cumsum(weights[kept]) / weights.sum()
        if cumulative[-1] >= top_p:
            break
        if top_p == 1 and cumulative[-1] > u:  # all are kept, their sum is 1, and `u` falls among these
            return int(kept[np.searchsorted(cumulative, u, side="right")])
    return int(kept[_position(cumulative, top_p, u)])


def likeliest(scaled: Logits, count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest values, largest first, the lower id first among equals."""
    if count >= scaled.size:
        return np.argsort(-scaled, kind="stable")
    threshold = np.partition(scaled, scaled.size - count)[scaled.size - count]
    candidates = np.flatnonzero(
        scaled >= threshold
    )  # ascending ids, so a stable sort keeps the lower one first
    return candidates[np.argsort(-scaled[candidates], kind="stable")][:count]


def _position(cumulative: NDArray[np.float64], top_p: float, u: float) -> int:
    last = min(int(np.searchsorted(cumulative, top_p)), cumulative.size - 1)
    return min(int(np.searchsorted(cumulative, u * cumulative[last], side="right")), last)


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """The log-probability of each token by `logits [vocab]`, computed in float64."""
    wide = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return result
