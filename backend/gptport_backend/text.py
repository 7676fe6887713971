"""Token ids to text, piece by piece: never half a character, and nothing of a stop string."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

# A prompt's last tokens decide how the first new one is written (sentencepiece drops a leading space only at
# the start of a text). A few are enough for every decoder, and a character has at most four bytes.
CONTEXT_TOKENS = 6
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The tokens that no text shows, and their ids."""
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special}


def unsettled_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The ids that never end a piece of text: special ones, and `<0x00>` … if the decoder reads bytes."""
    special = special_tokens(tokenizer).values()
    if "ByteFallback" not in json.dumps(json.loads(tokenizer.to_str())["decoder"]):
        return frozenset(special)
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset((*special, *(token for token in ids if token is not None)))


class Detokenizer:
    """Turns ids into text as they come; all pieces together are what decoding all the ids at once gives.

    Text is held back while it ends in half a character, and during a run of byte tokens: the decoder replaces
    the whole run if any of it is not UTF-8, so only its end tells. A window of tokens is decoded, not all of
    them; it begins where a piece of text began (the prefix and read offset of text-generation-inference).
    """

    def __init__(self, tokenizer: Tokenizer, unsettled: frozenset[int], prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._unsettled = unsettled
        self._window = list(
            prompt[-CONTEXT_TOKENS:]
        )  # the tokens of the last piece, then those not shown yet
        self._shown = len(self._window)  # how many of the window's tokens are in text already returned
        self._shown_text = self._decode(self._window)

    def push(self, token: int) -> str:
        """The text that `token` completes; "" if a character is not complete yet."""
        self._window.append(token)
        if token in self._unsettled:
            return ""
        text = self._decode(self._window)
        return "" if text.endswith(REPLACEMENT) else self._take(text)

    def flush(self) -> str:
        """The text still held back; call it once, at the end."""
        return self._take(self._decode(self._window))

    def _take(self, text: str) -> str:
        piece = text[len(self._shown_text) :]
        if piece:
            del self._window[: self._shown]
            self._shown = len(self._window)
            self._shown_text = self._decode(self._window)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class StopFilter:
    """Passes text on up to the first stop string; holds back what may still become one."""

    def __init__(self, stop_words: Sequence[str]) -> None:
        self._stop_words = tuple(stop_words)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """What of the text so far may be shown now; `stopped` tells that a stop string was found."""
        if self.stopped or not self._stop_words:
            return "" if self.stopped else piece
        text = self._held + piece
        found = [(text.find(word) + len(word), text.find(word)) for word in self._stop_words if word in text]
        if found:
            self.stopped = True
            self._held = ""
            _, start = min(found)  # the one that ends first, so that the pieces' borders make no difference
            return text[:start]
        keep = self._longest_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text still held back, now that no more comes."""
        text, self._held = self._held, ""
        return text

    def _longest_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max(map(len, self._stop_words)) - 1)
        for length in range(longest, 0, -1):
            if any(word.startswith(text[-length:]) for word in self._stop_words):
                return length
        return 0
