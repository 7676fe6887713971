"""`gptport serve`, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

from gptport.address import Address

PATIENCE = 100.0  # seconds until what never comes is a failure: on a slow machine too


class Command:
    """`gptport serve` in a process of its own, with a temporary folder of its own."""

    def __init__(self, folder: Path, repository: Path, *options: str) -> None:
        self.address = Address.free()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        ports = [f"{option}={port}" for option, port in self.address.ports.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gptport", "serve", str(repository), *ports, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
        )

    def wait_until_ready(self) -> list[psutil.Process]:
        """The processes that it started."""
        line = self.process.stderr.readline()
        assert line.startswith("Serving"), line + self.process.stderr.read()
        return psutil.Process(self.process.pid).children(recursive=True)

    def is_ready(self) -> bool:
        """Whether it takes requests."""
        try:
            urllib.request.urlopen(f"{self.address.http_url}/v2/health/ready", timeout=PATIENCE).close()
        except OSError:
            return False
        return True

    def end(self) -> tuple[int, str]:
        """Exit code and what it said."""
        _, said = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, said

    def regions(self) -> list[str]:
        """What is there of it in /dev/shm; a lock, which is empty, may stay until the next server starts."""
        there = Path("/dev/shm").glob(f"gptport_{self.process.pid}_*")
        return [path.name for path in there if path.suffix != ".lock"]

    def leftovers(self) -> list[str]:
        locks = [path.name for path in Path("/dev/shm").glob(f"gptport_{self.process.pid}_*.lock")]
        return self.regions() + locks + [path.name for path in self.temporary.iterdir()]


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all end, which one that is killed does a moment later; one that only waits for its parent to notice has ended."""
    end = time.monotonic() + PATIENCE
    while any(map(runs, processes)):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended, a moment ago."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it ends between the two questions
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
