"""The gateway as a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from gptport_client import TLS
from gptport_gateway.app import application

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gptport_gateway.keys import Keys

DRAIN_SECONDS = 30  # for the answers under way when the process is told to end


def serve(
    url: str,
    keys: Keys,
    host: str,
    port: int,
    ca: Path | None = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; `ca` and `headers` are for the connection to Triton."""
    uvicorn.run(
        application(url, keys, tls=TLS(ca=ca) if ca else None, headers=headers),
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
