"""`gptport gateway`: an endpoint as OpenAI's, and a chat page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .connection import add_server
from .terminal import say

if TYPE_CHECKING:
    import argparse

HELP = "Serve an endpoint as OpenAI's, and a chat page, in front of a served repository, until Ctrl-C."
KEYS_VARIABLE = "GPTPORT_API_KEYS"
LOCAL = ("127.0.0.1", "::1", "localhost")


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    add_server(command)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    command.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help=f"who may ask: one key a line (default: the variable {KEYS_VARIABLE}, with commas between keys)",
    )


def run(options: argparse.Namespace) -> None:
    """The command."""
    from gptport_gateway import Keys, serve

    variable = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    try:
        keys = Keys(variable) if options.api_keys is None else Keys.from_file(options.api_keys)
    except ValueError as error:
        raise UsageError(str(error)) from error
    open_to_all = options.api_keys is None and not variable
    if open_to_all and options.host not in LOCAL:
        say(f"gptport: {options.host} is open to whoever reaches it; --api-keys says who may ask")
    say(
        f"http://{options.host}:{options.port}/ is the chat page, http://{options.host}:{options.port}/v1 the endpoint"
    )
    serve(options.url, keys, options.host, options.port, options.ca, dict(options.header))
