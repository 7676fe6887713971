"""The options by which a user trusts a checkpoint's author; `locate.asked_for` goes by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_trust(command: argparse.ArgumentParser) -> None:
    """What may be read and run of the checkpoint that the command takes."""
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled weights, which can run any code their author wrote",
    )
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings along"
    )
