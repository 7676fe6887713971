"""Answers as OpenAI's JSON."""

from __future__ import annotations

import time
import uuid
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

from gptport_client import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from gptport_client import Chunk, Result, Score, Usage
    from gptport_gateway.asked import Asked

    Texts: TypeAlias = Callable[[Sequence[int]], Awaitable[tuple[str, ...]]]

# What OpenAI has no word for.
_FINISH_REASONS = {"timeout": "length", "cancelled": "stop"}


class Writer:
    """Writes the answers to one request; `chat` or completions.

    Args:
        asked: the request.
        chat: whether it was a conversation.
        texts: gives each token as text.
    """

    def __init__(self, asked: Asked, *, chat: bool, texts: Texts) -> None:
        self._asked = asked
        self._texts = texts
        self._chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._begun: set[int] = set()
        self._offsets: dict[int, int] = {}  # of the next token in the text of each answer
        self._usages: dict[int, Usage] = {}

    async def complete(self, results: Sequence[Result]) -> dict[str, Any]:
        """All answers at once."""
        for index, result in enumerate(results):
            self._usages[index] = result.usage
        return {
            **self._head("chat.completion" if self._chat else "text_completion"),
            "choices": [await self._whole(index, result) for index, result in enumerate(results)],
            "usage": self._usage(),
        }

    async def piece(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """A chunk of the answer `index`."""
        if chunk.usage is not None:
            self._usages[index] = chunk.usage
        usage = {"usage": None} if self._asked.include_usage else {}
        return {**self._event(), "choices": [await self._part(index, chunk)], **usage}

    def last(self) -> dict[str, Any] | None:
        """What comes behind all chunks, if it was asked for."""
        if not self._asked.include_usage:
            return None
        return {**self._event(), "choices": [], "usage": self._usage()}

    def _event(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self._chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}

    async def _whole(self, index: int, result: Result) -> dict[str, Any]:
        end = await self._end(index, result)
        if self._chat:
            return {**end, "message": {"role": "assistant", "content": result.text, "refusal": None}}
        return {**end, "text": self._echo(index) + result.text}

    async def _part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        first = index not in self._begun
        self._begun.add(index)
        end = await self._end(index, chunk)
        if self._chat:
            role: Mapping[str, str] = {"role": "assistant"} if first else {}
            return {**end, "delta": {**role, "content": chunk.text}}
        return {**end, "text": (self._echo(index) if first else "") + chunk.text}

    async def _end(self, index: int, piece: Result | Chunk) -> dict[str, Any]:
        reason = _FINISH_REASONS.get(piece.finish_reason or "", piece.finish_reason)
        return {"index": index, "logprobs": await self._logprobs(index, piece), "finish_reason": reason}

    async def _logprobs(self, index: int, piece: Result | Chunk) -> dict[str, Any] | None:
        score = piece.prompt_score if self._asked.echo and self._asked.params.logprobs is not None else None
        first = score.token_ids[:1] if score else ()  # nothing is before it
        logprobs = (*(_of_prompt(score) if score else ()), *piece.logprobs)
        if not logprobs and not first:
            return None
        ids = [*first, *(token for each in logprobs for token, _ in ((each.token_id, 0.0), *each.top))]
        texts = dict(zip(ids, await self._texts(ids), strict=True))
        if self._chat:
            return _of_chat(logprobs, texts)
        lengths = (len(texts[token]) for token in (*first, *(each.token_id for each in logprobs)))
        *offsets, self._offsets[index] = accumulate(lengths, initial=self._offsets.get(index, 0))
        return _of_completion(first, logprobs, texts, offsets)

    def _echo(self, index: int) -> str:
        prompt = self._asked.prompt_of(index) if self._asked.echo else ""
        return prompt if isinstance(prompt, str) else ""

    def _usage(self) -> dict[str, int]:
        # A prompt counts once, however many answers it has.
        prompt = sum(
            usage.prompt_tokens for index, usage in self._usages.items() if index % self._asked.n == 0
        )
        completion = sum(usage.completion_tokens for usage in self._usages.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }


def _of_chat(logprobs: Sequence[TokenLogprob], texts: Mapping[int, str]) -> dict[str, Any]:
    content = [
        {
            **_token(texts[each.token_id], each.logprob),
            "top_logprobs": [_token(texts[token], logprob) for token, logprob in each.top],
        }
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _of_prompt(score: Score) -> tuple[TokenLogprob, ...]:
    """Of all its tokens but the first."""
    return tuple(map(TokenLogprob, score.token_ids[1:], score.logprobs, score.top))


def _of_completion(
    first: Sequence[int], logprobs: Sequence[TokenLogprob], texts: Mapping[int, str], offsets: Sequence[int]
) -> dict[str, Any]:
    """`first` are tokens without a log-probability, before the others."""
    nothing = [None for _ in first]
    return {
        "tokens": [texts[token] for token in (*first, *(each.token_id for each in logprobs))],
        "token_logprobs": [*nothing, *(each.logprob for each in logprobs)],
        "top_logprobs": [
            *nothing,
            *({texts[token]: logprob for token, logprob in each.top} for each in logprobs),
        ],
        "text_offset": list(offsets),
    }
