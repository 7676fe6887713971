"""The tokenizer of the client's own loop: where it comes from, and the few things the loop asks of it."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gptport_client._errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import tokenizers

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """A `tokenizers.Tokenizer`, never truncating or padding, with what incremental decoding has to know.

    Safe from several threads: nothing changes after construction.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        if tokenizer.truncation or tokenizer.padding:
            tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # the caller's own stays as it is
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._special = _special_tokens(tokenizer)
        self.unsettled = _byte_tokens(tokenizer).union(self._special.values())

    def encode(self, text: str, *, special_tokens: bool = True) -> tuple[int, ...]:
        """The ids of a prompt, with the special tokens that the tokenizer puts around a text unless told otherwise."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def special(self, texts: Iterable[str]) -> frozenset[int]:
        """The ids of those of `texts` that are special tokens: no text shows one."""
        return frozenset(self._special[text] for text in texts if text in self._special)

    def text_of(self, token: int) -> str:
        """The text of one token, a special one's too; half a character is U+FFFD."""
        return self._tokenizer.decode([token], skip_special_tokens=False)


def read_tokenizer(source: str | Path | tokenizers.Tokenizer) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, in a directory that has one, or as given.

    Raises:
        InvalidRequest: there is none, or it cannot be read.
    """
    if not isinstance(source, (str, os.PathLike)):
        if not hasattr(source, "encode") or not hasattr(source, "get_added_tokens_decoder"):
            raise InvalidRequest(
                f"tokenizer is a {type(source).__name__}; give the path of a tokenizer.json, or a "
                "tokenizers.Tokenizer"
            )
        return Tokenizer(source)
    path = Path(source)
    path = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        return parse_tokenizer(path.read_bytes(), str(path))
    except OSError as error:
        raise InvalidRequest(
            f"tokenizer {path} cannot be read: {error.strerror}; give a tokenizer.json"
        ) from error


def parse_tokenizer(content: bytes, name: str) -> Tokenizer:
    """The tokenizer whose tokenizer.json has this content; `name` is for the error message."""
    import tokenizers  # the import costs 25 ms, and only this loop needs it

    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(content.decode()))
    except Exception as error:  # tokenizers raises nothing narrower
        raise InvalidRequest(f"tokenizer {name} is not a tokenizer.json: {error}") from error


class TokenizerCache:
    """tokenizer.json files under the user's cache directory, named by their sha256.

    The hash is checked on every read, so a damaged file is the same as none. A directory that cannot be
    written only means that nothing is kept.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or _cache_home() / "gptport" / "tokenizers"

    def read(self, sha256: str) -> bytes | None:
        """The content with this hash, if it is here."""
        try:
            content = self._path(sha256).read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() == sha256 else None

    def write(self, content: bytes) -> None:
        """Keep `content`; whoever reads meanwhile sees all of it or nothing."""
        path = self._path(hashlib.sha256(content).hexdigest())
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._directory, prefix=".tokenizer-")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError:
            return

    def _path(self, sha256: str) -> Path:
        return self._directory / f"{sha256}.json"


def _cache_home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says that a relative path is to be ignored.
    return Path(home) if Path(home).is_absolute() else Path("~/.cache").expanduser()


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: number for number, token in added.items() if token.special}


def _byte_tokens(tokenizer: tokenizers.Tokenizer) -> frozenset[int]:
    if tokenizer.decoder is None or b'"ByteFallback"' not in tokenizer.decoder.__getstate__():
        return frozenset()
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token for token in ids if token is not None)
