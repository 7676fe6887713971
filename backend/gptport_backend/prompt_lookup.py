"""Guesses how a text goes on from the text itself: what followed the last time that it ended like this.

Prompt lookup decoding (https://github.com/apoorvumang/prompt-lookup-decoding): speculative decoding (Leviathan et al. 2023)
without a second model.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import cycle, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_GUESSED = 32  # tokens
FEWEST_ALIKE = 3  # tokens that must have come before; two of them come again by chance in any text
PLACES = 16  # the latest ones, which are looked at


class PromptLookup:
    """The tokens of one sequence, and where each FEWEST_ALIKE of them end: a microsecond for a token, some for a guess."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._ends: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Take note of the next token."""
        self._tokens.append(token)
        self._ends[self._ending()].append(len(self._tokens))

    def guess(self, most: int) -> list[int]:
        """What may come next, at most `most` tokens; none without a place that ends alike.

        The place that has the most tokens in common with the end counts, the latest one among equals. As many are guessed as
        it has in common: the longer, the surer. A text that overlaps itself goes on in circles.
        """
        _, *earlier = reversed(self._ends[self._ending()][-PLACES - 1 :])
        alike, end = max(((self._alike(end, most), end) for end in earlier), default=(0, 0))
        return list(islice(cycle(self._tokens[end : end + most]), alike))

    def _ending(self) -> tuple[int, ...]:
        return tuple(self._tokens[-FEWEST_ALIKE:])

    def _alike(self, end: int, most: int) -> int:
        """How many of the tokens before `end` are those at the end of the text, up to `most`."""
        count = 0
        while count < min(most, end) and self._tokens[end - count - 1] == self._tokens[-count - 1]:
            count += 1
        return count
