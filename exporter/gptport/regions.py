"""What a tritonserver makes in /dev/shm for its Python processes, and what dead ones have left there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

_SHM = Path("/dev/shm")
_LOCK = ".lock"


class Regions:
    """The names of one server's regions, taken for as long as this process lives.

    A lock on a file says that they are in use. The kernel lifts it when the process ends, however it does, so that the next
    server finds what was left; a process id would say nothing between containers that share /dev/shm.

    Attributes:
        prefix: begins their names.
    """

    def __init__(self, folder: Path = _SHM) -> None:
        self.prefix = f"gptport_{os.getpid()}_{secrets.token_hex(4)}_"
        self._folder = folder
        self._lock = _locked(folder / f"{self.prefix}{_LOCK}")

    def remove(self) -> None:
        """Remove the regions, and lift the lock; may be called twice."""
        _remove(self._folder, self.prefix)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_leftovers(folder: Path = _SHM) -> None:
    """Remove the regions of servers that have died without doing so."""
    for path in folder.glob(f"gptport_*{_LOCK}"):
        lock = _locked(path)
        if lock is not None:
            _remove(folder, path.name.removesuffix(_LOCK))
            os.close(lock)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock on a file; None if another process does, or if the file belongs to another user."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
        else:
            return descriptor
    return None


def _remove(folder: Path, prefix: str) -> None:
    for region in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            region.unlink()
