"""`gptport gateway`: an endpoint as OpenAI's, and a chat page."""

from __future__ import annotations

import os
import socket
from errno import errorcode
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GptportError, UsageError
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
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listening = socket.create_server((options.host, options.port), family=family)
    except (OSError, OverflowError) as error:
        reason = (
            os.strerror(error.errno or 0)
            if isinstance(error, OSError) and error.errno in errorcode
            else error
        )
        raise GptportError(
            f"cannot listen on {options.host} port {options.port}: {reason}; choose another with --port"
        ) from error
    with listening:
        host = f"[{options.host}]" if family == socket.AF_INET6 else options.host
        address = f"http://{host}:{listening.getsockname()[1]}"
        say(f"{address}/ is the chat page, {address}/v1 the endpoint. Ctrl-C stops.")
        serve(options.url, keys, listening, options.ca, dict(options.header))
