"""Beam search in the client's own loop: the likeliest continuations, found over sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptport_client._generation import check_prompt_ids
from gptport_client._params import INT32_MAX, check_integer, check_number
from gptport_client._processors import process
from gptport_client._sampling import likeliest, log_softmax
from gptport_client._sequence import StepSequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._model import ModelConfig
    from gptport_client._processors import Processor
    from gptport_client._results import FinishReason
    from gptport_client._sampling import Logits
    from gptport_client._transport import AnyTransport


MOST_BEAMS = 64  # each is a sequence on the server


@dataclass(frozen=True)
class Hypothesis:
    """Tokens behind the prompt, and how likely they are.

    Attributes:
        token_ids: the new tokens, an end-of-text token included.
        logprob: the sum of their log-probabilities.
        ended: whether the last one ends the text.
    """

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    ended: bool = False

    def value(self, length_penalty: float) -> float:
        """What hypotheses are compared by: the log-probability over length to the power of the penalty."""
        return float(self.logprob / max(len(self.token_ids), 1) ** length_penalty)


@dataclass(frozen=True)
class BeamOptions:
    """Beams kept at a time, most new tokens, and the exponent of the length; 0 compares sums, 1 means."""

    beams: int
    max_tokens: int
    length_penalty: float

    def __post_init__(self) -> None:
        check_integer("beams", self.beams, 1, MOST_BEAMS)
        check_integer("max_tokens", self.max_tokens, 1, INT32_MAX)
        check_number("length_penalty", self.length_penalty, -10.0, 10.0)
        # What crosses the wire is float32; the loop here rounds alike.
        object.__setattr__(self, "length_penalty", float(np.float32(self.length_penalty)))


@dataclass(frozen=True)
class Beam:
    """A continuation that beam search found.

    Attributes:
        text: without the prompt.
        token_ids: the new tokens, an end-of-text token included.
        logprob: of all of them, given the prompt.
        finish_reason: `stop` after an end-of-text token, or `length`; `cancelled` or `timeout` if the server's loop had to end.
    """

    text: str
    token_ids: tuple[int, ...]
    logprob: float
    finish_reason: FinishReason


class BeamSearch:
    """One search. Its sequences are ended on the server however this ends.

    The step of transformers' beam search: those that end the text among the likeliest `beams` of all continuations of the
    live hypotheses are done, the likeliest `beams` of the others live on. It stops when as many are done as there are
    beams, and no live one has a better value than the worst of them.
    """

    def __init__(
        self,
        transport: AnyTransport,
        model: ModelConfig,
        prompt: tuple[int, ...],
        options: BeamOptions,
        processors: Sequence[Processor],
        deadline: Deadline,
        request_id: str,
    ) -> None:
        check_prompt_ids(prompt, options.max_tokens, model)
        self._model = model
        self._prompt = prompt
        self._options = options
        self._processors = processors
        self._deadline = deadline
        self._limit = min(options.max_tokens, model.max_length - len(prompt))
        self._sequences = [StepSequence(transport, model, request_id) for _ in range(options.beams)]

    def run(self) -> Flow[tuple[Hypothesis, ...]]:
        """The best hypotheses, best first; as many as there are beams, or all that there are."""
        done: list[Hypothesis] = []
        live = [Hypothesis()]
        try:
            for _ in range(self._limit):
                ranked = yield from self._continuations(live)
                done += [each for each in ranked[: self._options.beams] if each.ended]
                done = self._best(done)
                live = [each for each in ranked if not each.ended][: self._options.beams]
                if not live or self._settled(done, live):
                    break
            else:
                done = self._best(done + live)
        finally:
            for sequence in self._sequences:
                sequence.end()
        return tuple(done or self._best(live))

    def _continuations(self, live: Sequence[Hypothesis]) -> Flow[list[Hypothesis]]:
        """Of the hypotheses that are one token longer those that may be done or live on, the likeliest first."""
        beams, ends = self._options.beams, self._model.eos_token_ids
        found: list[Hypothesis] = []
        for hypothesis, sequence in self._assigned(live):
            logits = yield from self._logits(hypothesis, sequence)
            logprobs = log_softmax(logits)
            ranked = likeliest(logits, beams + len(ends)).tolist()
            others = [token for token in ranked[beams:] if token not in ends]
            for token in ranked[:beams] + others[:beams]:
                ids = (*hypothesis.token_ids, token)
                total = hypothesis.logprob + float(logprobs[token])
                found.append(Hypothesis(ids, total, token in ends))
        return sorted(found, key=lambda each: -each.logprob)

    def _assigned(self, live: Sequence[Hypothesis]) -> list[tuple[Hypothesis, StepSequence]]:
        """Each hypothesis with the free sequence that shares most with it: mostly, no token is computed twice."""
        free, pairs = list(self._sequences), []
        for hypothesis in live:
            ids = (*self._prompt, *hypothesis.token_ids)
            chosen = max(free, key=lambda sequence: _shared(sequence.tokens, ids))
            free.remove(chosen)
            pairs.append((hypothesis, chosen))
        return pairs

    def _logits(self, hypothesis: Hypothesis, sequence: StepSequence) -> Flow[Logits]:
        ids = (*self._prompt, *hypothesis.token_ids)
        # The last token is appended in any case, for its logits.
        kept = min(_shared(sequence.tokens, ids), len(ids) - 1)
        sequence.rewind(len(sequence.tokens) - kept)
        logits = yield from sequence.append(ids[kept:], self._deadline)
        return process(logits, ids, self._processors)

    def _best(self, hypotheses: list[Hypothesis]) -> list[Hypothesis]:
        penalty = self._options.length_penalty
        return sorted(hypotheses, key=lambda each: -each.value(penalty))[: self._options.beams]

    def _settled(self, done: Sequence[Hypothesis], live: Sequence[Hypothesis]) -> bool:
        penalty = self._options.length_penalty
        return len(done) == self._options.beams and live[0].value(penalty) <= done[-1].value(penalty)


def _shared(tokens: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(tokens, ids, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(tokens), len(ids)))
