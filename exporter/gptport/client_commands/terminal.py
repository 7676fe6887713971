"""What goes to the terminal, and what comes from standard input."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """A line for people, beside the output."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def put(text: str, end: str = "\n") -> None:
    """Output, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def standard_input() -> str:
    """All of standard input; what is not UTF-8 is left for the client to refuse."""
    return sys.stdin.buffer.read().decode(errors="surrogateescape")
