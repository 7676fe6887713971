"""What a request changes in its logits before a token is drawn: small steps, in the order of docs/protocol.md."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gptport_backend.request import SamplingParameters

Logits: TypeAlias = NDArray[np.float32]
Step: TypeAlias = "Callable[[], Change]"


@dataclass(frozen=True)
class Change:
    """What becomes of the logits of `ids [n]`, none of them twice.

    `values [n]` are added to them; if it `scales`, they divide those above 0 and multiply the others.
    """

    ids: NDArray[np.int64]
    values: NDArray[np.float32]
    scales: bool = False

    def apply(self, logits: Logits) -> None:
        """Change `logits [vocab]` in place."""
        if not self.scales:
            logits[self.ids] += self.values
            return
        found = logits[self.ids]
        with np.errstate(over="ignore"):
            logits[self.ids] = np.where(found > 0, found / self.values, found * self.values)


class History:
    """The tokens of one sequence so far."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        self.generated: Counter[int] = Counter()
        self._prompt = frozenset(prompt)

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens.append(token)
        self.generated[token] += 1

    @property
    def count(self) -> int:
        """How many tokens were generated."""
        return self.generated.total()

    @property
    def seen(self) -> NDArray[np.int64]:
        """The ids in prompt and answer, each once."""
        return np.fromiter(self._prompt | self.generated.keys(), np.int64)


@dataclass(frozen=True)
class Forbidden:
    """Tokens that must not come: `ends` before `min_tokens`, the last token of one of `words` behind its others."""

    ends: tuple[int, ...] = ()
    words: tuple[tuple[int, ...], ...] = ()


ALLOW_ALL = Forbidden()


def steps(parameters: SamplingParameters, forbidden: Forbidden, history: History) -> tuple[Step, ...]:
    """Those steps that the parameters ask for, in their order; at most one scales."""
    composed: list[Step] = []
    if parameters.logit_bias:
        composed.append(_bias(parameters.logit_bias))
    if parameters.repetition_penalty != 1:
        composed.append(_repetition_penalty(parameters.repetition_penalty, history))
    if parameters.presence_penalty or parameters.frequency_penalty:
        composed.append(_penalties(parameters.presence_penalty, parameters.frequency_penalty, history))
    if forbidden.words:
        composed.append(_bad_words(forbidden.words, history))
    if parameters.min_tokens and forbidden.ends:
        composed.append(_min_tokens(parameters.min_tokens, forbidden.ends, history))
    return tuple(composed)


def _bias(bias: tuple[tuple[int, float], ...]) -> Step:
    ids = np.array([token for token, _ in bias], np.int64)
    change = Change(ids, np.array([value for _, value in bias], np.float32))
    return lambda: change


def _repetition_penalty(penalty: float, history: History) -> Step:
    """Of Keskar et al. 2019 (CTRL), on the tokens of prompt and answer."""

    def penalize() -> Change:
        ids = history.seen
        return Change(ids, np.full(ids.size, penalty, np.float32), scales=True)

    return penalize


def _penalties(presence: float, frequency: float, history: History) -> Step:
    """Of OpenAI's API: on the tokens of the answer, once and for each time that they came."""

    def penalize() -> Change:
        ids = np.fromiter(history.generated, np.int64)
        counts = np.fromiter(history.generated.values(), np.float32)
        return Change(ids, -(np.float32(presence) + np.float32(frequency) * counts))

    return penalize


def _bad_words(words: tuple[tuple[int, ...], ...], history: History) -> Step:
    def forbid() -> Change:
        tokens = history.tokens
        found = {last for *first, last in words if not first or tokens[-len(first) :] == first}
        return _never(np.fromiter(found, np.int64))

    return forbid


def _min_tokens(least: int, ends: tuple[int, ...], history: History) -> Step:
    change, nothing = _never(np.array(ends, np.int64)), _never(np.empty(0, np.int64))
    return lambda: change if history.count < least else nothing


def _never(ids: NDArray[np.int64]) -> Change:
    return Change(ids, np.full(ids.size, -np.inf, np.float32))
