"""Logits to tokens, as docs/protocol.md says under "Sampling, exactly"; the greedy rows all at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptport_backend.errors import NothingToChoose
from gptport_backend.likelihood import Logprobs
from gptport_backend.logits import DeviceLogits
from gptport_backend.processors import ALLOW_ALL, Forbidden, History, Logits, steps
from gptport_backend.ranking import FEW, Buckets, Ranking, likeliest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gptport_backend.grammar import Constraint
    from gptport_backend.logits import StepLogits
    from gptport_backend.processors import Change
    from gptport_backend.ranking import TokenArray
    from gptport_backend.request import SamplingParameters

ROUNDING = 4e-6  # twice the most that float32 was seen to make a cumulative probability wrong by

NOTHING_TO_CHOOSE = (
    "there is no token to choose: either the model computed logits that are not finite numbers, or repetition_penalty "
    "made them so, or bad_words, logit_bias_values, min_tokens and the form asked for leave none"
)


@dataclass(frozen=True)
class Draw:
    """How one token is to be drawn where the logits are, without the host seeing them; as it is: the likeliest one."""

    u: float = 0.0
    temperature: float = 1.0
    top_k: int = 1  # 0 for all
    top_p: float = 1.0
    min_p: float = 0.0
    changes: tuple[Change, ...] = ()


class Sampler:
    """Draws the tokens of one request; keeps its random numbers, one for each token, and what was drawn."""

    def __init__(
        self,
        parameters: SamplingParameters,
        prompt: Sequence[int] = (),
        forbidden: Forbidden = ALLOW_ALL,
        constraint: Constraint | None = None,
    ) -> None:
        self._parameters = parameters
        self._random = np.random.Generator(np.random.Philox(key=parameters.seed))
        self._history = History(prompt)
        self._steps = steps(parameters, forbidden, self._history)
        self._constraint = constraint
        self._raw: Logits | None = None  # of the next token, before they were adjusted
        self.logprobs: list[Logprobs] = []  # one for each token, if they were asked for

    @property
    def greedy(self) -> bool:
        """True if the token is simply the likeliest one."""
        return self._parameters.temperature == 0

    def adjust(self, logits: Logits) -> None:
        """Change `logits [vocab]` in place as the request asks for."""
        if self._parameters.logprobs is not None:
            self._raw = logits.copy() if self._steps or self._constraint is not None else logits
        for step in self._steps:
            step().apply(logits)
        if self._constraint is not None:
            self._constraint.forbid(logits)

    def draw(self, logits: Logits) -> int:
        """One token id from `logits [vocab]`, adjusted."""
        u = float(self._random.random())
        temperature = np.float32(self._parameters.temperature)
        with np.errstate(over="ignore"):
            scaled = logits if temperature == 1 else logits / temperature
        if not np.isfinite(scaled.max()):  # a temperature so small that the quotient overflows is greedy
            return int(logits.argmax())
        return _draw(scaled, self._parameters, u)

    def take(self, logits: Logits, likeliest: int) -> int:
        """The next token, noted already, by `logits [vocab]`, adjusted, whose largest is at `likeliest`."""
        token = likeliest if self.greedy else self.draw(logits)
        return self.accept(token, float(logits[token]))

    def described(self) -> Draw | None:
        """How the next token is drawn, for who has the logits; None if that takes the logits themselves."""
        parameters = self._parameters
        if self._constraint is not None or parameters.logprobs is not None or parameters.typical_p != 1:
            return None
        changes = tuple(step() for step in self._steps)
        if self.greedy:
            return Draw(changes=changes)
        u = float(self._random.random())
        return Draw(u, parameters.temperature, parameters.top_k, parameters.top_p, parameters.min_p, changes)

    def accept(self, token: int, logit: float) -> int:
        """Take note of a token that was drawn, if its adjusted logit is a number. NothingToChoose otherwise."""
        if not math.isfinite(logit):
            error = self._constraint.error if self._constraint is not None else ""
            raise NothingToChoose(error or NOTHING_TO_CHOOSE)
        self.append(token)
        return token

    def append(self, token: int) -> None:
        """Take note of the token that came of it."""
        self._history.append(token)
        if self._constraint is not None:
            self._constraint.append(token)
        if self._raw is not None:
            self.logprobs.append(Logprobs.of(self._raw, token, self._parameters.logprobs or 0))


def sample(logits: StepLogits, rows: Sequence[int], samplers: Sequence[Sampler]) -> list[int | BaseException]:
    """The next token of each of `rows` of a step, which the sampler beside it draws.

    For a row whose sampler fails it is the error, NothingToChoose if no token is left; the others do not notice. A panic of
    llguidance is one too, though no Exception.
    """
    tokens: dict[int, int | BaseException] = {}
    if isinstance(logits, DeviceLogits):
        tokens = _sample_there(logits, dict(zip(rows, samplers, strict=True)))
    left = {row: sampler for row, sampler in zip(rows, samplers, strict=True) if row not in tokens}
    if left:
        tokens |= zip(left, _sample_here(logits.on_host(list(left)), list(left.values())), strict=True)
    return [tokens[row] for row in rows]


def _sample_there(logits: DeviceLogits, samplers: dict[int, Sampler]) -> dict[int, int | BaseException]:
    """The tokens of those rows that can be drawn where the logits are."""
    tokens: dict[int, int | BaseException] = {}
    draws = {}
    for row, sampler in samplers.items():
        try:
            if (draw := sampler.described()) is not None:
                draws[row] = draw
        except BaseException as error:
            tokens[row] = error
    for row, (token, logit) in logits.draw(draws).items() if draws else ():
        try:
            tokens[row] = samplers[row].accept(token, logit)
        except BaseException as error:
            tokens[row] = error
    return tokens


def _sample_here(logits: Logits, samplers: Sequence[Sampler]) -> list[int | BaseException]:
    """The next token of each row of `logits [batch, vocab]`, which are adjusted in place: -inf is what must not come."""
    errors: dict[int, BaseException] = {}
    for row, sampler in enumerate(samplers):
        try:
            sampler.adjust(logits[row])
        except BaseException as error:
            errors[row] = error
    tokens: list[int | BaseException] = []
    for row, token in enumerate(logits.argmax(axis=1).tolist()):
        try:
            tokens.append(errors.get(row) or samplers[row].take(logits[row], token))
        except BaseException as error:
            tokens.append(error)
    return tokens


def _draw(scaled: Logits, parameters: SamplingParameters, u: float) -> int:
    """The token at `u` of those that the parameters keep."""
    if parameters.top_k:
        ids = np.sort(likeliest(scaled, parameters.top_k))
        return int(ids[_draw_of_all(scaled[ids], parameters, u)])
    return _draw_of_all(scaled, parameters, u)


def _draw_of_all(scaled: Logits, parameters: SamplingParameters, u: float) -> int:
    """The same, of `scaled` logits that top_k left.

    The exponentials of float64 count. Where float32 gives the same token whichever way it is wrong, they take less time.
    """
    if parameters.typical_p < 1:
        return _draw_typical(scaled.astype(np.float64), parameters, u)
    if scaled.size > FEW:
        ranking = Ranking(scaled)
        token = _token(ranking, parameters, u, -ROUNDING)
        if token == _token(ranking, parameters, u, ROUNDING):
            return token
    return _token(Ranking(scaled.astype(np.float64)), parameters, u, 0.0)


def _token(ranking: Ranking, parameters: SamplingParameters, u: float, error: float) -> int:
    """The token at `u` of those that top_p and min_p keep, if all cumulative probabilities are too large by `error`."""
    kept = ranking.mass(parameters.min_p * (1 - 5 * error)) if parameters.min_p else 1.0
    if parameters.top_p < kept:
        kept = min(kept, ranking.reach(parameters.top_p + error))
    return ranking.token_at(u * kept + 2 * error)


def _draw_typical(scaled: NDArray[np.float64], parameters: SamplingParameters, u: float) -> int:
    """The token at `u` of those that top_p, min_p and typical_p keep; in float64, as an entropy is a sum over all."""
    if parameters.top_p < 1 or parameters.min_p:
        kept = Ranking(scaled).kept(parameters.top_p, parameters.min_p)
        kept = kept[_typical(scaled[kept], parameters.typical_p)]
    else:
        kept = _typical(scaled, parameters.typical_p)
    return int(kept[Ranking(scaled[kept]).token_at(u)])


def _typical(scaled: NDArray[np.float64], typical_p: float) -> TokenArray:
    """Ascending indices of those nearest to the expected surprise that reach `typical_p`: Meister et al. 2022."""
    below = scaled - scaled.max()
    weights = np.exp(below)
    total = weights.sum()
    surprise = np.log(total) - below
    entropy = (weights @ np.where(weights > 0, surprise, 0)) / total
    return Buckets(-np.abs(surprise - entropy), weights).prefix(typical_p)
