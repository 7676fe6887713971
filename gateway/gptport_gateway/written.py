"""Answers as OpenAI's JSON."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gptport_client import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gptport_client import AsyncClient, Chunk, Result, Score, TextOffsets, Usage
    from gptport_gateway.asked import Asked

# What OpenAI has no word for.
_FINISH_REASONS = {"timeout": "length", "cancelled": "stop"}


@dataclass(frozen=True)
class WrittenPrompt:
    """What answers to a completion tell of their prompt.

    Attributes:
        text: they begin with it; empty without `echo`.
        token_ids: its tokens, where the answers' have log-probabilities.
        score: how likely it is, where that does not come with the answer.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    score: Score | None = None


class Writer:
    """Writes the answers to one request; `chat` or completions.

    Args:
        asked: the request.
        chat: whether it was a conversation.
        client: the model's, for the text of tokens.
        prompts: of completions.
    """

    def __init__(
        self, asked: Asked, *, chat: bool, client: AsyncClient, prompts: Sequence[WrittenPrompt] = ()
    ) -> None:
        self._asked = asked
        self._client = client
        self._prompts = prompts
        self._chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._begun: set[int] = set()
        self._offsets: dict[int, TextOffsets] = {}  # by answer
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
        end = await self._end(index, result, first=True)
        if self._chat:
            return {**end, "message": {"role": "assistant", "content": result.text, "refusal": None}}
        return {**end, "text": self._prompt(index).text + result.text}

    async def _part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        first = index not in self._begun
        self._begun.add(index)
        end = await self._end(index, chunk, first=first)
        if self._chat:
            role: Mapping[str, str] = {"role": "assistant"} if first else {}
            return {**end, "delta": {**role, "content": chunk.text}}
        return {**end, "text": (self._prompt(index).text if first else "") + chunk.text}

    async def _end(self, index: int, piece: Result | Chunk, *, first: bool) -> dict[str, Any]:
        reason = _FINISH_REASONS.get(piece.finish_reason or "", piece.finish_reason)
        score = self._score(index, piece) if first else None
        return {
            "index": index,
            "logprobs": await self._logprobs(index, piece.logprobs, score),
            "finish_reason": reason,
        }

    def _score(self, index: int, piece: Result | Chunk) -> Score | None:
        if not self._asked.echo or self._asked.params.logprobs is None:
            return None
        return piece.prompt_score or self._prompt(index).score

    async def _logprobs(
        self, index: int, own: Sequence[TokenLogprob], score: Score | None
    ) -> dict[str, Any] | None:
        first = score.token_ids[:1] if score else ()  # nothing is before it
        logprobs = (*(_of_prompt(score) if score else ()), *own)
        if not logprobs and not first:
            return None
        ids = [*first, *(token for each in logprobs for token, _ in ((each.token_id, 0.0), *each.top))]
        texts = dict(zip(ids, await self._client.token_texts(ids), strict=True))
        if self._chat:
            return _of_chat(logprobs, texts)
        offsets = (await self._client.text_offsets()).push(score.token_ids) if score else ()
        own_offsets = await self._own_offsets(index, [each.token_id for each in own])
        return _of_completion(first, logprobs, texts, (*offsets, *own_offsets))

    async def _own_offsets(self, index: int, token_ids: Sequence[int]) -> list[int]:
        prompt = self._prompt(index)
        if index not in self._offsets:
            self._offsets[index] = await self._client.text_offsets(prompt.token_ids)
        return [len(prompt.text) + offset for offset in self._offsets[index].push(token_ids)]

    def _prompt(self, index: int) -> WrittenPrompt:
        return self._prompts[index // self._asked.n]

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
