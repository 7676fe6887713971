"""A server that resets each HTTP/2 stream, as a proxy does when the server behind it is gone."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import pytest

import gptport_client
from gptport_client import Client, Retry
from toy_checks import PATIENCE

HEADERS, RST_STREAM, SETTINGS = 1, 3, 4
ACKNOWLEDGED = 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """RFC 9113, 4.1."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def reset_each_stream(listener: socket.socket, code: int) -> None:
    with (
        contextlib.suppress(OSError, struct.error),
        listener.accept()[0] as peer,
        peer.makefile("rb") as came,
    ):
        assert came.read(len(PREFACE)) == PREFACE
        peer.sendall(frame(SETTINGS, 0, 0))
        while True:
            size, kind, flags, stream = struct.unpack("!3sBBI", came.read(9))
            came.read(int.from_bytes(size))
            if kind == SETTINGS and not flags & ACKNOWLEDGED:
                peer.sendall(frame(SETTINGS, ACKNOWLEDGED, 0))
            elif kind == HEADERS:
                peer.sendall(frame(RST_STREAM, 0, stream, struct.pack("!I", code)))


@pytest.mark.parametrize("code", [0, 2, 7, 8], ids=["NO_ERROR", "INTERNAL_ERROR", "REFUSED_STREAM", "CANCEL"])
def test_a_reset_is_a_lost_connection_whatever_its_code(code):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=reset_each_stream, args=(listener, code), daemon=True).start()
        url = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(url, model="toy", retry=Retry(0)) as client,
            pytest.raises(gptport_client.ConnectionError, match="no connection to"),
        ):
            client.generate([5, 6, 7], timeout=PATIENCE)
