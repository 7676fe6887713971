"""One request on its way through the engine: tokens in, pieces of the answer out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gptport_backend.grammar import Grammars
from gptport_backend.likelihood import PromptScore
from gptport_backend.processors import Forbidden
from gptport_backend.prompt_lookup import PromptLookup
from gptport_backend.sampling import Sampler
from gptport_backend.sequence import FinishReason, Piece, ScoredPrompt, Sequence
from gptport_backend.text import Detokenizer, StopFilter, special_tokens, unsettled_tokens

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from gptport_backend.adapters import Adapter
    from gptport_backend.answers import Answers
    from gptport_backend.beams import BeamSearch
    from gptport_backend.chat import Chat
    from gptport_backend.request import GenerationRequest
    from gptport_backend.reuse import Found


SCORED_TOKENS = 64  # of a prompt in one step: logits of them are in memory together


@dataclass(frozen=True)
class Vocabulary:
    """What turns tokens into text and ends it, the same for all requests of a model."""

    tokenizer: Tokenizer
    size: int  # of the logits; a tokenizer may have more tokens
    special: dict[str, int]
    unsettled: frozenset[int]
    longest_token: int  # in characters
    eos: frozenset[int]
    grammars: Grammars
    chat: Chat

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int, eos: frozenset[int], chat: Chat) -> Vocabulary:
        """The vocabulary of `tokenizer` and of logits `[size]`, in which the ids `eos` end a text."""
        longest = max(map(len, tokenizer.get_vocab()))
        grammars = Grammars(tokenizer, size, eos)
        special, unsettled = special_tokens(tokenizer), unsettled_tokens(tokenizer)
        return cls(tokenizer, size, special, unsettled, longest, eos, grammars, chat)

    def encode(self, text: str, *, special_tokens: bool = True) -> tuple[int, ...]:
        """The ids of a text."""
        # `encode` holds the interpreter's lock, and with it the loop; a batch of one does not.
        (found,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)
        return tuple(found.ids)

    def ends(self, request: GenerationRequest) -> frozenset[int]:
        """The tokens that end the answer to `request`; a special token among its stop words is one, as no text shows it."""
        named = (self.special[word] for word in request.stop_words if word in self.special)
        return frozenset(() if request.ignore_eos else self.eos).union(request.stop_token_ids, named)

    def forbidden(self, request: GenerationRequest) -> Forbidden:
        """The tokens that must not come in the answer to `request`."""
        texts = [text for word in request.bad_words for text in (word, f" {word}")]
        words = {tuple(self.tokenizer.encode(text, add_special_tokens=False).ids) for text in texts}
        ends = self.eos.union(request.stop_token_ids)
        return Forbidden(
            tuple(token for token in ends if token < self.size),
            tuple(word for word in words if word and word[-1] < self.size),
        )


class Generation(Sequence):
    """A sequence with its sampler, its text and where that goes: the answer number `index` to its request."""

    def __init__(
        self,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        limit: int,
        vocabulary: Vocabulary,
        answers: Answers,
        index: int = 0,
        adapter: Adapter | None = None,
    ) -> None:
        super().__init__(prompt, limit, request.priority, arrived=time.monotonic())
        self._constraint = vocabulary.grammars.constraint(request.form) if request.form else None
        sampling = replace(request.sampling, seed=(request.sampling.seed + index) % 2**64)
        self.sampler = Sampler(sampling, prompt, vocabulary.forbidden(request), self._constraint)
        self.answers = answers
        self.adapter = adapter
        self.index = index
        self.finish_reason: FinishReason = ""
        self.context_ids = np.array(self.context, np.int64)
        self.found: Found | None = None  # what is copied when it is admitted
        self.search: BeamSearch | None = None  # whose beam it is
        top = None if index else request.prompt_logprobs  # once is enough
        self._score = None if top is None else PromptScore(prompt, top)
        self._score_sent = False
        self.chunk = None if top is None else SCORED_TOKENS
        self._most_guessed = request.prompt_lookup
        self._lookup = PromptLookup(prompt) if request.prompt_lookup else None
        self._stream = request.stream
        self.end_tokens = vocabulary.ends(request)
        self.token_at = 0.0  # when the last token came
        self.first_token: float | None = None  # seconds from the arrival until it came
        self._deadline = float("inf") if request.timeout is None else self.arrived + request.timeout
        self._detokenizer = Detokenizer(vocabulary.tokenizer, vocabulary.unsettled, prompt)
        self._stop = StopFilter(request.stop_words)
        self._sent = 0  # tokens of the output that were in a response
        self.shown_prompt = ""
        if not request.exclude_input:
            decoded = vocabulary.tokenizer.decode(list(prompt), skip_special_tokens=True)
            self.shown_prompt = decoded if request.text is None else request.text
        self._text = self.shown_prompt  # not in a response yet

    def score_prompt(self, start: int, logits: NDArray[Any]) -> None:
        """Take the logits of each token from `start` on; may end the sequence, if nothing else was asked for."""
        assert self._score is not None
        self._score.add(start, logits)
        if self._score.complete:
            self.chunk = None
        self.check_end()

    def guess(self) -> list[int]:
        """What may follow the last token, if the request wants that to be tried; never so much that no token is left to draw."""
        room = self.limit - len(self.output) - 1
        return self._lookup.guess(min(self._most_guessed, room)) if self._lookup else []

    def accept(self, token: int) -> None:
        """Append the token that was sampled; sends a piece if there is one, and may end the sequence."""
        if self.first_token is None:
            self.first_token = time.monotonic() - self.arrived
        self.output.append(token)
        if self._lookup:
            self._lookup.append(token)
        if token in self.end_tokens:
            self.finish("stop")
            return
        self._text += self._stop.push(self._detokenizer.push(token))
        if self._stop.stopped or (self._constraint and self._constraint.complete):
            self.finish("stop")
        elif len(self.output) >= self.limit:
            self.finish("length")
        elif self._stream and self._text:
            self._send()

    def over(self, now: float) -> FinishReason:
        """Why the sequence has to end: nobody waits for it anymore, its time is over, or all that was asked for is there."""
        if self.answers.is_cancelled():
            return "cancelled"
        if now >= self._deadline:
            return "timeout"
        if not self.limit and (self._score is None or self._score.complete):
            return "length"
        return ""

    def check_end(self) -> None:
        """End the sequence if it is over."""
        if reason := self.over(time.monotonic()):
            self.finish(reason)

    def give_up_row(self) -> None:
        super().give_up_row()
        self.context_ids = np.array(self.context, np.int64)

    def finish(self, reason: FinishReason) -> None:
        """End the sequence and send the last piece, with all text still held back."""
        self._text += self._stop.push(self._detokenizer.flush())
        if self._stop.stopped and reason == "length":
            reason = "stop"
        self._text += self._stop.flush()
        self.finish_reason = reason
        self._send()

    def _send(self) -> None:
        piece = Piece(
            text=self._text,
            token_ids=tuple(self.output[self._sent :]),
            finish_reason=self.finish_reason,
            num_input_tokens=len(self.prompt),
            num_output_tokens=len(self.output),
            logprobs=tuple(self.sampler.logprobs[self._sent :]),
            index=self.index,
            prompt=self._scored(),
            first_token=self.first_token,
        )
        self._sent = len(self.output)
        self._text = ""
        self.answers.send(piece)

    def _scored(self) -> ScoredPrompt | None:
        """The prompt's log-probabilities, once, when they are there."""
        if self._score is None or self._score_sent or not self._score.complete:
            return None
        self._score_sent = True
        return ScoredPrompt(self.prompt, tuple(self._score.logprobs))
