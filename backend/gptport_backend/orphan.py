"""Ends this process after a crash of its server.

A process of Triton's python backend whose server is gone waits for it forever if a response, or the question whether
a request is cancelled, was on its way; it would keep its memory, and a region in /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from pathlib import Path

GRACE_SECONDS = 5.0  # in which Triton's own handling of a lost server may end the process


def end_with_parent() -> None:
    """Watch the parent process from now on; when it is gone, remove what is shared with it, and exit."""
    try:
        parent = os.pidfd_open(os.getppid())
    except OSError:  # a kernel without pidfd, or a sandbox that forbids it
        return
    threading.Thread(target=_watch, args=(parent,), name="gptport-orphan", daemon=True).start()


def _watch(parent: int) -> None:
    poll = select.poll()
    poll.register(parent, select.POLLIN)
    poll.poll()
    for region in shared_regions(Path("/proc/self/maps").read_text(encoding="utf-8")):
        with contextlib.suppress(OSError):
            region.unlink()
    time.sleep(GRACE_SECONDS)
    os._exit(1)


def shared_regions(maps: str) -> set[Path]:
    """The regions of Triton's python backend in /dev/shm, by its own name or `gptport serve`'s, in /proc/PID/maps."""
    return {Path(match) for match in re.findall(r"(/dev/shm/(?:triton_\S+_shm_region_|gptport_)\S+)", maps)}
