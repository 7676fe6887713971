"""`gptport rollback`: serve a version that was exported before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..client_commands.terminal import put

if TYPE_CHECKING:
    import argparse

HELP = "Serve a version that was exported before, of a model and of its step models."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument("model", type=Path, metavar="REPOSITORY/NAME", help="folder of the model")
    command.add_argument(
        "--to",
        type=int,
        metavar="VERSION",
        help="the version (default: the one that was served before the present one)",
    )


def run(options: argparse.Namespace) -> None:
    """The command."""
    from .. import rollback

    switched = rollback.rollback(options.model, options.to)
    put(
        f"{' and '.join(switched.models)}: version {switched.after} instead of {switched.before}. "
        "A running server goes on with what it has loaded until it loads the models again."
    )
