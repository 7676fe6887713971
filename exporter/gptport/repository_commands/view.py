"""`gptport view`: look at the graph of a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..client_commands.terminal import say

if TYPE_CHECKING:
    import argparse

HELP = "Open the graph of an exported model in Netron, in the browser."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument("model", type=Path, metavar="REPOSITORY/NAME", help="folder of the model")
    command.add_argument(
        "--port", type=int, default=0, help="to listen on, at 127.0.0.1 (default: any that is free)"
    )
    command.add_argument("--no-browser", action="store_true", help="only say where it is")


def run(options: argparse.Namespace) -> None:
    """The command; it ends with Ctrl-C."""
    import netron

    from .. import manifest

    folder = manifest.version_folder(options.model)
    logging.getLogger("netron").setLevel(logging.WARNING)  # it says where it is, too
    graph = folder / manifest.read(folder).graph
    host, port = netron.start(
        str(graph), address=("127.0.0.1", options.port or None), browse=not options.no_browser
    )
    say(f"{graph} is shown at http://{host}:{port} until Ctrl-C")
    netron.wait()
