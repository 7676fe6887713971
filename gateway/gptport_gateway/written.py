"""Answers as OpenAI's JSON."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gptport_client import Chunk, Result, Usage
    from gptport_gateway.asked import Asked


class Writer:
    """Writes the answers to one request; `chat` or completions."""

    def __init__(self, asked: Asked, *, chat: bool) -> None:
        self._asked = asked
        self._chat = chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._begun: set[int] = set()
        self._usages: dict[int, Usage] = {}

    def complete(self, results: Sequence[Result]) -> dict[str, Any]:
        """All answers at once."""
        for index, result in enumerate(results):
            self._usages[index] = result.usage
        return {
            **self._head("chat.completion" if self._chat else "text_completion"),
            "choices": [self._whole(index, result) for index, result in enumerate(results)],
            "usage": self._usage(),
        }

    def piece(self, index: int, chunk: Chunk) -> dict[str, Any]:
        """A chunk of the answer `index`."""
        if chunk.usage is not None:
            self._usages[index] = chunk.usage
        usage = {"usage": None} if self._asked.include_usage else {}
        return {**self._event(), "choices": [self._part(index, chunk)], **usage}

    def last(self) -> dict[str, Any] | None:
        """What comes behind all chunks, if it was asked for."""
        if not self._asked.include_usage:
            return None
        return {**self._event(), "choices": [], "usage": self._usage()}

    def _event(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self._chat else "text_completion")

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}

    def _whole(self, index: int, result: Result) -> dict[str, Any]:
        end = {"index": index, "logprobs": None, "finish_reason": result.finish_reason}
        if self._chat:
            return {**end, "message": {"role": "assistant", "content": result.text, "refusal": None}}
        return {**end, "text": self._echo(index) + result.text}

    def _part(self, index: int, chunk: Chunk) -> dict[str, Any]:
        first = index not in self._begun
        self._begun.add(index)
        end = {"index": index, "logprobs": None, "finish_reason": chunk.finish_reason}
        if self._chat:
            role: Mapping[str, str] = {"role": "assistant"} if first else {}
            return {**end, "delta": {**role, "content": chunk.text}}
        return {**end, "text": (self._echo(index) if first else "") + chunk.text}

    def _echo(self, index: int) -> str:
        prompt = self._asked.choices[index][0] if self._asked.echo else ""
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
