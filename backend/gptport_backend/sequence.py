"""A request on its way: its tokens, how far they are computed, and where its answer goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from gptport_backend.likelihood import Logprobs

FinishReason = Literal["", "stop", "length", "cancelled", "timeout"]


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt's tokens, and how likely each but the first was."""

    token_ids: tuple[int, ...]
    logprobs: tuple[Logprobs, ...]


@dataclass(frozen=True)
class Piece:
    """One response: what is new of the answer; the last one has a finish reason."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    num_input_tokens: int
    num_output_tokens: int
    logprobs: tuple[Logprobs, ...] = ()  # of `token_ids`, if they were asked for
    index: int = 0  # of the answer, if a request has several
    prompt: ScoredPrompt | None = None  # in the first piece of the first answer, if it was asked for
    first_token: float | None = None  # seconds from the request's arrival to the first token, if one came
    logprob: float | None = None  # of all its tokens, if beam search found it


class Sink(Protocol):
    """Where the answers to one request go; the `final` response, or `fail`, is its end.

    Attributes:
        request_id: what the client calls the request, for the log.
    """

    request_id: str

    def send(self, pieces: tuple[Piece, ...], *, final: bool) -> None:
        """Pass one response on: a piece of one answer, or several answers, each whole."""

    def fail(self, message: str) -> None:
        """End with an error of the server."""

    def is_cancelled(self) -> bool:
        """True once nobody waits for the answer anymore."""


@dataclass(eq=False)
class Sequence:
    """Prompt and answer of one request, as the scheduler sees it.

    Attributes:
        context: what is computed before it is decoded: the prompt, or all tokens so far if it had to give its row up.
        computed: how many tokens have their keys and values in the cache.
        chunk: the most tokens of its context that a step computes, alone then; None if it goes with others.
        rows: how many it may need; 0 for one that comes and goes with another, whose they are.
    """

    prompt: tuple[int, ...]
    limit: int  # most new tokens
    priority: int = 0  # the smallest one runs first
    arrived: float = 0.0  # seconds
    output: list[int] = field(default_factory=list)
    computed: int = 0
    context: tuple[int, ...] = ()
    chunk: int | None = None
    rows: int = 1

    def __post_init__(self) -> None:
        self.context = self.prompt

    @property
    def tokens(self) -> tuple[int, ...]:
        """Prompt and answer."""
        return (*self.prompt, *self.output)

    @property
    def prefilled(self) -> bool:
        """True once its context is in the cache, or all but its last token: from then on it is decoded."""
        return self.computed >= len(self.context) - 1

    @property
    def last_token(self) -> int:
        """The one to compute in the next decode step."""
        return self.output[-1] if self.output else self.prompt[-1]

    def give_up_row(self) -> None:
        """Forget what is computed; it will be computed anew."""
        self.context, self.computed = self.tokens, 0
