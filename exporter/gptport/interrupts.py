"""What Ctrl-C does to the command."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130  # as shells have it: 128, and the signal's number
_IMPORTING = "<frozen importlib."


def handle() -> None:
    """From now on Ctrl-C raises `KeyboardInterrupt`, as ever, but ends the process at once while a module is imported.

    Modules in C make an `ImportError` and a traceback of the exception. Nothing changes where the signal is ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def leave() -> NoReturn:
    """End the process with no more than a line."""
    os.write(2, b"gptport: interrupted\n")
    os._exit(INTERRUPTED)


def _interrupted(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTING):
            leave()
        frame = frame.f_back
    raise KeyboardInterrupt
