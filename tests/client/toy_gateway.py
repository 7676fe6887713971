"""A gateway in front of the toy server, in a thread."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import uvicorn

from gptport_gateway import Keys, application


@contextmanager
def gateway(url, keys=()):
    """Run a gateway before the server at `url`, for those who have one of the keys; its address."""
    server = uvicorn.Server(uvicorn.Config(application(url, Keys(keys)), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
