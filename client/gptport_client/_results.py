"""What a caller gets: pieces of text as they come, or all of it at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from gptport_client._errors import ProtocolError

if TYPE_CHECKING:
    from gptport_client._score import Score

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout"]


def finish_reason(name: str) -> FinishReason:
    """`name` as a finish reason.

    Raises:
        ProtocolError: it is none.
    """
    if name not in get_args(FinishReason):
        raise ProtocolError(f"the server ended with the unknown finish reason {name!r}; update this client")
    return cast("FinishReason", name)


@dataclass(frozen=True)
class Usage:
    """Tokens that a request took.

    Attributes:
        prompt_tokens: tokens of the prompt.
        completion_tokens: new tokens, those of an end-of-text token or a stop string included.
    """

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """How long a request took, in seconds, on the client's clock.

    Attributes:
        time_to_first_token: from asking to the first piece.
        total: from asking to the last piece.
        inter_token: mean time between tokens after the first piece; None if all tokens came at once.
    """

    time_to_first_token: float
    total: float
    inter_token: float | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """How likely a token was, by the model's own logits, before a parameter changes them.

    Attributes:
        token_id: the token that was chosen.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens at its place with theirs, the likeliest first, as many as were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: what is new; never half a character; may be empty.
        token_ids: the new tokens.
        finish_reason: why generation ended, on the last chunk only: `stop` (a token or string that ends it), `length`
            (max_tokens or the model's length), `cancelled` or `timeout` (by the server).
        usage: the token counts, on the last chunk only.
        logprobs: of `token_ids`, if they were asked for.
        prompt_score: how likely the prompt was, if that was asked for, in the first chunk only.
        index: of the answer that it is a piece of, from 0.
        logprob: of all tokens of an answer that the server's beam search found.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_score: Score | None = None
    index: int = 0
    logprob: float | None = None


@dataclass(frozen=True)
class Result:
    """A complete answer; the fields are those of the chunks put together.

    Attributes:
        text: the generated text, without the prompt.
        token_ids: the generated tokens.
        finish_reason: see `Chunk`.
        usage: the token counts.
        timings: seconds to the first piece and in total.
        request_id: what the server's log calls the request.
        logprobs: of `token_ids`, if they were asked for.
        prompt_score: how likely the prompt was, if that was asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    request_id: str
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_score: Score | None = None
