"""What the parameters change in the logits before a token is drawn, as docs/protocol.md says; for the client's own loop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._params import SamplingParams
    from gptport_client._sampling import Logits
    from gptport_client._tokenizer import Tokenizer


class Adjuster:
    """Changes the logits of one sequence; keeps its tokens.

    Args:
        params: what is asked for.
        prompt: token ids.
        ends: the ids that end a text.
        tokenizer: gives the tokens of `bad_words`.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int], ends: frozenset[int], tokenizer: Tokenizer
    ) -> None:
        self._params = params
        self._tokens = list(prompt)
        self._prompt = frozenset(prompt)
        self._generated: Counter[int] = Counter()
        self._ends = np.array(sorted(ends.union(params.stop_token_ids)), np.int64)
        self._bad = _encoded(params.bad_words, tokenizer)
        self._bias_ids = np.array([token for token, _ in params.biases], np.int64)
        self._biases = np.array([bias for _, bias in params.biases], np.float32)

    def append(self, token: int) -> None:
        """Take note of a new token."""
        self._tokens.append(token)
        self._generated[token] += 1

    def adjust(self, logits: Logits) -> Logits:
        """A copy of `logits [vocab]`, changed in the protocol's order."""
        logits = logits.copy()
        logits[self._bias_ids] += self._biases
        self._penalize(logits)
        for *beginning, last in self._bad:
            if last >= logits.size:  # a tokenizer may have more tokens than the model
                continue
            if not beginning or self._tokens[-len(beginning) :] == beginning:
                logits[last] = -np.inf
        if self._generated.total() < self._params.min_tokens:
            logits[self._ends] = -np.inf
        return logits

    def _penalize(self, logits: Logits) -> None:
        params = self._params
        if params.repetition_penalty != 1:
            seen = np.fromiter(self._prompt | self._generated.keys(), np.int64)
            factor = np.float32(params.repetition_penalty)
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / factor, logits[seen] * factor)
        if params.presence_penalty or params.frequency_penalty:
            ids = np.fromiter(self._generated, np.int64)
            counts = np.fromiter(self._generated.values(), np.float32)
            logits[ids] -= np.float32(params.presence_penalty) + np.float32(params.frequency_penalty) * counts


def _encoded(words: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    texts = [text for word in words for text in (word, f" {word}")]
    return [ids for text in texts if (ids := tokenizer.encode(text, special_tokens=False))]
