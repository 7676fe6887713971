"""API keys: who may ask."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Keys:
    """A set of keys, of which only hashes are kept. An empty one lets everybody in."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._hashes = tuple(_hash(key) for key in keys)

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """One key a line; empty lines and those that begin with # are left out.

        Raises:
            ValueError: there is none, which would let everybody in.
        """
        lines = (line.strip() for line in path.read_text().splitlines())
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{path} has no key; write one key a line")
        return cls(keys)

    def admit(self, authorization: str) -> bool:
        """Whether the header `Authorization` has one of the keys, as `Bearer KEY`."""
        if not self._hashes:
            return True
        scheme, _, key = authorization.partition(" ")
        given = _hash(key.strip())
        # Every key is compared, so that the time says nothing.
        found = [hmac.compare_digest(given, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(found)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
