"""A command in a process of its own: how long it took, and how much memory it held at most."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LAST_LINES = 20


class CommandFailedError(RuntimeError):
    """A command ended with an exit code other than 0; the message has the end of what it said."""


@dataclass(frozen=True)
class Finished:
    """What a command took.

    Attributes:
        seconds: from start to end, on the wall.
        processor_seconds: of all its threads and children, in the system's code as well.
        peak_bytes: largest resident memory of the process or of one of its children. Memory of files that are
            mapped counts for as long as it is resident.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Finished:
    """Run `command` to its end, its output in the file `log`; CommandFailedError if its exit code is not 0.

    The process that calls this must be small: Linux counts what a child held before its exec too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        start = time.perf_counter()
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        raise CommandFailedError(f"exit code {child.returncode} of {' '.join(command)}\n" + "\n".join(said))
    return Finished(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
