"""The client's own loop as a state machine: which tokens to feed next, and what the logits make of the text.

It never waits for anything; whoever drives it does (`_loop.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_client._adjust import Adjuster
from gptport_client._errors import InvalidRequest
from gptport_client._processors import process
from gptport_client._results import Chunk, FinishReason, TokenLogprob, Usage
from gptport_client._sampling import Sampler, likeliest, log_softmax
from gptport_client._text import Detokenizer, StopFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._model import ModelConfig
    from gptport_client._params import SamplingParams
    from gptport_client._processors import Processor
    from gptport_client._sampling import Logits
    from gptport_client._score import Score
    from gptport_client._tokenizer import Tokenizer


class Generation:
    """One text on its way.

    Attributes:
        pending: the tokens to append to the sequence next: the prompt, then each new token.
        finished: whether the last chunk was made.
        score: of the prompt, for the next chunk, if there is one.

    Raises:
        InvalidRequest: the prompt is too long for the model, or has ids that the model does not know.
    """

    def __init__(
        self,
        prompt: tuple[int, ...],
        params: SamplingParams,
        processors: Sequence[Processor],
        model: ModelConfig,
        tokenizer: Tokenizer,
    ) -> None:
        check_prompt_ids(prompt, params.max_tokens, model)
        self.score: Score | None = None
        self.pending = prompt
        self.finished = False
        self._ids = list(prompt)
        self._prompt_tokens = len(prompt)
        self._limit = min(params.max_tokens, model.max_length - len(prompt))
        ends = frozenset(() if params.ignore_eos else model.eos_token_ids)
        self._ends = ends.union(params.stop_token_ids, tokenizer.special(params.stop_strings))
        self._adjuster = Adjuster(params, prompt, frozenset(model.eos_token_ids), tokenizer)
        self._sampler = Sampler(params)
        self._top = params.logprobs
        self._processors = processors
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._stop = StopFilter(params.stop_strings)
        self._tokens = 0
        self._unsent: list[int] = []  # tokens whose text is still held back
        self._logprobs: list[TokenLogprob] = []  # theirs, if they are asked for

    @property
    def last(self) -> bool:
        """Whether the next token is the last one, whatever it is: nothing is appended behind it."""
        return self._tokens + 1 == self._limit

    def accept(self, logits: Logits) -> Chunk | None:
        """Choose a token from `logits [vocab]`; the chunk that it completes, if it does."""
        processed = process(logits, self._ids, self._processors)
        token = self._sampler.draw(self._adjuster.adjust(processed))
        self._adjuster.append(token)
        if self._top is not None:
            self._logprobs.append(token_logprob(logits, token, self._top))
        self.pending = (token,)
        self._ids.append(token)
        self._tokens += 1
        self._unsent.append(token)
        text = self._stop.push(self._detokenizer.push(token))
        if token in self._ends or self._stop.stopped:
            return self._finish(text, "stop")
        if self._tokens == self._limit:
            return self._finish(text, "length")
        return self._chunk(text) if text else None

    def end_unanswered(self) -> Chunk:
        """The only chunk, where no token was asked for."""
        return self._finish("", "length")

    def _finish(self, text: str, reason: FinishReason) -> Chunk:
        if not self._stop.stopped:
            text += self._stop.push(self._detokenizer.flush())
            text += self._stop.flush()
        self.finished = True
        return self._chunk(text, "stop" if self._stop.stopped else reason)

    def _chunk(self, text: str, reason: FinishReason | None = None) -> Chunk:
        ids, self._unsent = tuple(self._unsent), []
        logprobs, self._logprobs = tuple(self._logprobs), []
        score, self.score = self.score, None
        usage = Usage(self._prompt_tokens, self._tokens) if reason else None
        return Chunk(text, ids, reason, usage, logprobs, score)


def token_logprob(logits: Logits, token: int, top: int) -> TokenLogprob:
    """How likely `token` is by `logits [vocab]`, and the `top` likeliest."""
    found = log_softmax(logits)
    best = likeliest(found, top).tolist()
    return TokenLogprob(token, float(found[token]), tuple((each, float(found[each])) for each in best))


def check_prompt_ids(prompt: tuple[int, ...], max_tokens: int, model: ModelConfig) -> None:
    """Raise InvalidRequest unless `prompt`, and a token behind it, fits into the model and has only ids that it knows."""
    if not prompt:
        raise InvalidRequest("prompt has no tokens after tokenizing; give a longer text")
    most = model.max_length - min(max_tokens, 1)
    if len(prompt) > most:
        why = f", one less than its length of {model.max_length}" if max_tokens else ""
        raise InvalidRequest(
            f"prompt has {len(prompt)} tokens; {model.name} takes at most {most}{why}: "
            "shorten it, or export with a larger --max-length"
        )
    if max(prompt) >= model.vocab_size:
        raise InvalidRequest(
            f"prompt has the token id {max(prompt)}, the vocabulary of {model.name!r} ends at "
            f"{model.vocab_size - 1}; tokenize with the model's own tokenizer"
        )
