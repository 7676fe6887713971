"""Logits to tokens, exactly as docs/protocol.md says, so that both loops give the same tokens for a seed."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

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
        self._keep = Keep(
            int(params.top_k), *(float(np.float32(p)) for p in (params.top_p, params.min_p, params.typical_p))
        )
        seed = secrets.randbits(64) if params.seed is None else int(params.seed)
        self._random = np.random.Generator(np.random.Philox(key=seed))

    def draw(self, logits: Logits) -> int:
        """The next token.

        Args:
            logits: `[vocab]`, float32.

        Raises:
            ServerError: a logit is not a number, or none is finite.
        """
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):  # argmax finds what is not a number, too
            raise ServerError(
                "there is no token to choose: either the model computed logits that are not finite numbers (export it in a "
                "wider precision), or bad_words, logit_bias and min_tokens leave none"
            )
        if self._temperature == 0:
            return best
        u = float(self._random.random())
        with np.errstate(over="ignore"):
            scaled = logits / self._temperature
        if not np.isfinite(scaled.max()):  # so small a temperature that the quotient overflows is greedy
            return int(logits.argmax())
        return _choose(scaled, self._keep, u)


@dataclass(frozen=True)
class Keep:
    """Which of the tokens stay: see `SamplingParams`. `top_k` is 0 for all."""

    top_k: int
    top_p: float
    min_p: float
    typical_p: float

    @property
    def nucleus(self) -> bool:
        """Whether nothing but `top_p` takes tokens away."""
        return self.top_k == 0 and self.min_p == 0 and self.typical_p == 1


def _choose(scaled: Logits, keep: Keep, u: float) -> int:
    """The token at `u` of those that are kept."""
    weights = np.exp(scaled.astype(np.float64) - float(scaled.max()))
    if not keep.nucleus:
        return _filtered(scaled, weights, keep, u)
    for count in (FIRST_LOOK, scaled.size):
        kept = likeliest(scaled, count)
        cumulative = np.cumsum(weights[kept]) / weights.sum()
        if cumulative[-1] >= keep.top_p:
            break
        if keep.top_p == 1 and cumulative[-1] > u:  # all are kept, their sum is 1, and `u` falls among these
            return int(kept[np.searchsorted(cumulative, u, side="right")])
    last = min(int(np.searchsorted(cumulative, keep.top_p)), cumulative.size - 1)
    return int(kept[_at(cumulative[: last + 1], u)])


def _filtered(scaled: Logits, weights: NDArray[np.float64], keep: Keep, u: float) -> int:
    likely = int(np.count_nonzero(weights >= keep.min_p)) if keep.min_p else scaled.size
    kept = likeliest(scaled, min(keep.top_k or scaled.size, scaled.size if keep.top_k else max(1, likely)))
    total = weights[kept].sum() if keep.top_k else weights.sum()
    cumulative = np.cumsum(weights[kept]) / total
    kept = kept[: max(1, min(int(np.searchsorted(cumulative, keep.top_p)) + 1, likely))]
    if keep.typical_p < 1:
        kept = kept[_typical(weights[kept], keep.typical_p)]
    return int(kept[_at(np.cumsum(weights[kept]), u)])


def _typical(weights: NDArray[np.float64], typical_p: float) -> NDArray[np.int64]:
    """The places of those nearest to the expected surprise that reach `typical_p`, ascending: Meister et al. 2022."""
    probabilities = weights / weights.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = np.nansum(probabilities * surprise)
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    reached = int(np.searchsorted(np.cumsum(probabilities[order]), typical_p)) + 1
    return np.sort(order[:reached])


def _at(cumulative: NDArray[np.float64], u: float) -> int:
    """The first place whose cumulative weight exceeds `u` × all of it."""
    return min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), cumulative.size - 1)


def likeliest(scaled: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest values, largest first, the lower id first among equals."""
    if not 0 < count < scaled.size:
        return np.argsort(-scaled, kind="stable")[:count]
    threshold = np.partition(scaled, scaled.size - count)[scaled.size - count]
    candidates = np.flatnonzero(
        scaled >= threshold
    )  # ascending ids, so a stable sort keeps the lower one first
    return candidates[np.argsort(-scaled[candidates], kind="stable")][:count]


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """The log-probability of each token by `logits [vocab]`, computed in float64."""
    wide = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return result
