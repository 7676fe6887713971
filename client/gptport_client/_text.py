"""Tokens to text, piece by piece: never half a character, and nothing of a stop string."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._tokenizer import Tokenizer

# A few tokens of what stands before decide how a token is written (a sentencepiece decoder drops the space at
# the start of a text), and a character has at most four bytes.
CONTEXT_TOKENS = 6
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Turns ids into text as they come; all pieces together are what decoding all ids at once gives.

    `tokenizers.decoders.DecodeStream` does the same for well-formed text, but raises on byte-fallback tokens
    that are not UTF-8, which a model at a high temperature does produce. The decoder replaces a whole run of
    byte tokens if any of it is wrong, so a run's text is known only at its end, and is held back until then.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT_TOKENS:])
        # What of the window's text was returned, or is the prompt's.
        self._shown = tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """The text that `token` completes; empty if a character is not complete yet."""
        self._window.append(token)
        if token in self._tokenizer.unsettled:
            return ""
        text = self._tokenizer.decode(self._window)
        piece = self._take(text, len(text.rstrip(REPLACEMENT)))
        if len(self._shown) == len(text):
            self._shorten()
        return piece

    def held(self) -> int:
        """How many characters are whole, but held back."""
        return max(len(self._tokenizer.decode(self._window).rstrip(REPLACEMENT)) - len(self._shown), 0)

    def flush(self) -> str:
        """The text still held back; to be called once, at the end."""
        text = self._tokenizer.decode(self._window)
        return self._take(text, len(text))

    def _take(self, text: str, end: int) -> str:
        # Not simply len(shown): a prompt of ids may end in half a character, which reads otherwise once it is
        # whole.
        pairs = enumerate(zip(self._shown, text, strict=False))
        start = next((n for n, (old, new) in pairs if old != new), min(len(self._shown), len(text)))
        if end <= start:
            return ""
        self._shown = text[:end]
        return text[start:end]

    def _shorten(self) -> None:
        window = self._window[-CONTEXT_TOKENS:]
        text = self._tokenizer.decode(window)
        if text:  # without any text the next token would be written as the start of one
            self._window, self._shown = window, text


def whole_text(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """The text of `ids` behind `prompt`."""
    detokenizer = Detokenizer(tokenizer, prompt)
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


class TextOffsets:
    """Where in the text behind a prompt each token's own begins, as the tokens come.

    A token in the middle of a character is where that character begins; a special token is no text.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._returned = 0
        self._next = 0

    def push(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Characters before each of the next tokens."""
        found = []
        for token in token_ids:
            found.append(self._next)
            self._returned += len(self._detokenizer.push(token))
            # A run of byte tokens reads as U+FFFD as long as its last character is not whole.
            self._next = max(self._next, self._returned + self._detokenizer.held())
        return tuple(found)


class StopFilter:
    """Passes text on up to the first stop string; holds back what may still become one."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._stop_strings = tuple(stop_strings)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What may be shown now; `stopped` is true from the first stop string on."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [
            (text.find(string) + len(string), text.find(string))
            for string in self._stop_strings
            if string in text
        ]
        if found:
            # The one that ends first, so that it does not matter how the text was cut into pieces.
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        shown = len(text) - self._possible_beginning(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The text still held back, now that no more comes."""
        text, self._held = self._held, ""
        return text

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stop_strings), default=1) - 1)
        lengths = range(longest, 0, -1)
        return next(
            (n for n in lengths if any(string.startswith(text[-n:]) for string in self._stop_strings)), 0
        )
