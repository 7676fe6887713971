"""Memory that a client shares with a server on the same host, and what Triton is told of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHM = Path("/dev/shm")
# What the names of regions begin with.
SYSTEM, CUDA = "gptport", "gptportcuda"


@dataclass(frozen=True)
class Registration:
    """A region as Triton's system shared memory extension knows it.

    Attributes:
        name: what requests call it.
        key: its name in /dev/shm, after a slash.
        byte_size: of the whole region.
    """

    name: str
    key: str
    byte_size: int


class SystemRegion:
    """System shared memory: `rows` of `length` positions of `width` bytes, zeros at first.

    It has a name in /dev/shm only while Triton maps it, so that nothing is left there by a client that is killed.

    Raises:
        OSError: there is no room for it, or this system has no such memory.
    """

    advice = "give /dev/shm more room"

    def __init__(self, rows: int, length: int, width: int) -> None:
        self.length = length
        self._width = width
        self._size = rows * length * width
        self._file = os.open(_SHM, os.O_TMPFILE | os.O_RDWR, 0o600)
        self._close = weakref.finalize(self, os.close, self._file)
        # A file with holes would end whoever writes into them when memory runs out, the server too.
        os.posix_fallocate(self._file, 0, self._size)
        memory = mmap.mmap(self._file, self._size)
        self._rows = np.frombuffer(memory, np.uint8).reshape(rows, length * width)

    def copy(self, other: Any, used: int) -> None:
        """Take the first `used` positions of each row of another of its kind."""
        self._rows[:, : used * self._width] = other._rows[:, : used * self._width]

    @contextlib.contextmanager
    def registration(self) -> Iterator[Registration]:
        """What Triton is to be told, which holds inside of the context, once."""
        name = new_name()
        path = _SHM / name
        # With a folder given, os.link follows the link in /proc to the file, as linkat(2) has it.
        folder = os.open(_SHM, os.O_RDONLY)
        try:
            os.link(f"/proc/self/fd/{self._file}", path, src_dir_fd=folder)
            yield Registration(name, f"/{name}", self._size)
        finally:
            path.unlink(missing_ok=True)
            os.close(folder)
            self._close()


def new_name(kind: str = SYSTEM) -> str:
    """A name that nobody guesses, and that says whose it is: the namespace of process ids, and the id."""
    return f"{kind}-{_namespace()}-{os.getpid()}-{secrets.token_hex(16)}"


def in_cuda_memory(name: str) -> bool:
    """Whether it is the name of a region of a GPU's memory."""
    return name.startswith(f"{CUDA}-")


def is_left(name: str) -> bool:
    """Whether it is the name of a region whose client has died, as far as that can be told from here."""
    prefix, _, rest = name.partition("-")
    namespace, _, rest = rest.partition("-")
    process = rest.partition("-")[0]
    if prefix not in (SYSTEM, CUDA) or namespace != _namespace() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is another user's
        return False
    return False


def room() -> int:
    """Bytes that there are for system shared memory; 0 where there is none."""
    try:
        found = os.statvfs(_SHM)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return "".join(filter(str.isdecimal, str(Path("/proc/self/ns/pid").readlink())))
    return "0"
