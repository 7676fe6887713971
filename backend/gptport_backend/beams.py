"""Beam search: the likeliest continuations of a prompt, as `beam_search` of the client finds them in its own loop."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gptport_backend.generation import Generation
from gptport_backend.ranking import likeliest
from gptport_backend.sequence import FinishReason, Piece
from gptport_backend.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from gptport_backend.adapters import Adapter
    from gptport_backend.answers import Answers
    from gptport_backend.generation import Vocabulary
    from gptport_backend.request import GenerationRequest


@dataclass(frozen=True)
class Hypothesis:
    """New tokens, the sum of their log-probabilities, whether the last one ends the text, and the beam they came of."""

    tokens: tuple[int, ...] = ()
    logprob: float = 0.0
    ended: bool = False
    parent: int = 0

    def value(self, length_penalty: float) -> float:
        """What hypotheses are compared by: the log-probability over length to the power of the penalty."""
        return float(self.logprob / max(len(self.tokens), 1) ** length_penalty)


@dataclass(frozen=True)
class Copy:
    """The row of one beam is to be copied over that of another, which may not have one yet."""

    source: Generation
    target: Generation


class Beam(Generation):
    """A row of a search beside its first; it comes and goes with the search, which decides all for it."""

    def __init__(
        self, search: BeamSearch, request: GenerationRequest, vocabulary: Vocabulary, adapter: Adapter | None
    ) -> None:
        super().__init__(request, search.prompt, search.limit, vocabulary, search.answers, adapter=adapter)
        self.priority, self.arrived = search.priority, search.arrived
        self.rows = 0  # the search has taken it into account
        self.search = search

    def over(self, now: float) -> FinishReason:  # noqa: ARG002 - left to the search
        """Never by itself."""
        return ""


class BeamSearch(Generation):
    """One search, which the scheduler admits and puts back as a whole; it is a beam itself, the first one.

    The step of transformers' beam search: those that end the text among the likeliest `beam_width` of all continuations of the
    live hypotheses are done, the likeliest `beam_width` of the others live on. It stops when as many are done as there are
    beams, and no live one has a better value than the worst of them.

    Put back, it begins anew: it finds the same again, and its prompt is mostly in the prefix cache.

    Attributes:
        beams: those of the live hypotheses, the likeliest first.
        copies: what the last step asks for, in any order: no source is a target.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        limit: int,
        vocabulary: Vocabulary,
        answers: Answers,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(request, prompt, limit, vocabulary, answers, adapter=adapter)
        self.rows = request.beam_width
        self.search = self
        self.beams: list[Generation] = [self]
        self.copies: list[Copy] = []
        self._request = request
        self._vocabulary = vocabulary
        self._live = [Hypothesis()]
        self._done: list[Hypothesis] = []
        self._before: list[Hypothesis] = []  # the best when it last was put back

    @property
    def others(self) -> list[Generation]:
        """The beams but itself."""
        return [beam for beam in self.beams if beam is not self]

    def extend(self, logits: NDArray[np.float32]) -> None:
        """One step, by the `logits [beams, vocab]` of the live hypotheses; may end the search."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.arrived
        width = self._request.beam_width
        ranked = self._continuations(logits)
        self._done = self._best([*self._done, *(each for each in ranked[:width] if each.ended)])
        self._live = [each for each in ranked if not each.ended][:width]
        if not self._live or self._settled():
            self.finish("stop")
        elif len(self._live[0].tokens) >= self.limit:
            self._done = self._best(self._done + self._live)
            self.finish("length")
        else:
            self._place()

    def finish(self, reason: FinishReason) -> None:
        """End the search and send the best hypotheses; those that end the text end with `stop`, the others with `reason`."""
        self.finish_reason = reason
        found = self._done or self._best(self._live)
        if reason in ("cancelled", "timeout"):
            found = self._so_far()
        self.answers.send_all([self._piece(*each) for each in enumerate(found[: self._request.n])])

    def give_up_row(self) -> None:
        """Begin anew."""
        self._before = self._so_far()
        self._live, self._done, self.beams = [Hypothesis()], [], [self]
        self.output = []
        super().give_up_row()

    def _so_far(self) -> list[Hypothesis]:
        now = self._best(self._done + self._live)
        return max(now, self._before, key=lambda found: max((len(each.tokens) for each in found), default=0))

    def _continuations(self, logits: NDArray[np.float32]) -> list[Hypothesis]:
        """Of the hypotheses that are one token longer those that may be done or live on, the likeliest first."""
        width = self._request.beam_width
        found = []
        for parent, (hypothesis, row) in enumerate(zip(self._live, logits, strict=True)):
            logprobs = _log_softmax(row)
            ranked = likeliest(row, width + len(self.end_tokens)).tolist()
            others = [token for token in ranked[width:] if token not in self.end_tokens]
            for token in ranked[:width] + others[:width]:
                total = hypothesis.logprob + float(logprobs[token])
                found.append(Hypothesis((*hypothesis.tokens, token), total, token in self.end_tokens, parent))
        return sorted(found, key=lambda each: -each.logprob)

    def _best(self, hypotheses: Iterable[Hypothesis]) -> list[Hypothesis]:
        penalty = self._request.length_penalty
        return sorted(hypotheses, key=lambda each: -each.value(penalty))[: self._request.beam_width]

    def _settled(self) -> bool:
        penalty = self._request.length_penalty
        full = len(self._done) == self._request.beam_width
        return full and self._live[0].value(penalty) <= self._done[-1].value(penalty)

    def _place(self) -> None:
        """Give each live hypothesis a beam: its parent's to the first of a parent, to the others a free one, or a new one.

        None stays free: never are fewer hypotheses alive than before.
        """
        free = dict(enumerate(self.beams))
        placed = [free.pop(each.parent, None) for each in self._live]
        spare = list(free.values())
        self.copies = []
        for place, hypothesis in enumerate(self._live):
            if placed[place] is None:
                target = spare.pop() if spare else self._new_beam()
                self.copies.append(Copy(self.beams[hypothesis.parent], target))
                placed[place] = target
        assert not spare
        self.beams = [beam for beam in placed if beam is not None]
        for beam, hypothesis in zip(self.beams, self._live, strict=True):
            beam.output = list(hypothesis.tokens)
            beam.computed, beam.token_at = self.computed, self.token_at

    def _new_beam(self) -> Beam:
        return Beam(self, self._request, self._vocabulary, self.adapter)

    def _piece(self, index: int, hypothesis: Hypothesis) -> Piece:
        shown: Sequence[int] = hypothesis.tokens[:-1] if hypothesis.ended else hypothesis.tokens
        detokenizer = Detokenizer(self._vocabulary.tokenizer, self._vocabulary.unsettled, self.prompt)
        text = "".join(map(detokenizer.push, shown)) + detokenizer.flush()
        open_end: FinishReason = "length" if self.finish_reason == "stop" else self.finish_reason
        return Piece(
            text=self.shown_prompt + text,
            token_ids=hypothesis.tokens,
            finish_reason="stop" if hypothesis.ended else open_end,
            num_input_tokens=len(self.prompt),
            num_output_tokens=len(hypothesis.tokens),
            index=index,
            first_token=self.first_token,
            logprob=hypothesis.logprob,
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[Any]:
    """In float64, of `logits [vocab]`; ArithmeticError if they are no numbers."""
    if not np.isfinite(logits.max()):
        raise ArithmeticError("the model computed logits that are not finite numbers")
    wide = logits.astype(np.float64) - float(logits.max())
    result: NDArray[Any] = wide - np.log(np.exp(wide).sum())
    return result
