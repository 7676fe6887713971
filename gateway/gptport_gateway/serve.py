"""The gateway as a process."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import uvicorn

from gptport_client import TLS
from gptport_gateway.app import application

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from socket import socket

    from gptport_gateway.keys import Keys

DRAIN_SECONDS = 30  # for the answers under way when the process is told to end


def serve(
    url: str,
    keys: Keys,
    listening: socket,
    ca: Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Serve on a socket that listens, until SIGINT or SIGTERM; `ca` and `headers` are for the connection to Triton."""
    config = uvicorn.Config(
        application(url, keys, tls=TLS(ca=ca) if ca else None, headers=headers),
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and raises its signal again
        uvicorn.Server(config).run([listening])
