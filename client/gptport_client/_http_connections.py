"""HTTP connections to one server, kept for the next request."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from typing import TYPE_CHECKING

from gptport_client._errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gptport_client._deadline import Deadline
    from gptport_client._endpoint import TLS, Endpoint

MOST_IDLE = 32


class HttpConnections:
    """Gives a connection to one user at a time. Safe from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._host = endpoint.host.strip("[]")
        self._port = endpoint.port
        self._context = None if endpoint.tls is None else _context(endpoint.tls)
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def take(self) -> http.client.HTTPConnection:
        """A connection that is idle, or a new one that is not connected yet."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
        if self._context is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._context)

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        """For the next one; its last response has been read to the end."""
        with self._lock:
            if connection.sock is not None and len(self._idle) < MOST_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close those that are idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class Exchange:
    """One request and its response.

    Args:
        connections: where the connection comes from, and goes back to when the response was read to its end.
        deadline: for all of it.
    """

    def __init__(self, connections: HttpConnections, deadline: Deadline) -> None:
        self._connections = connections
        self._deadline = deadline
        self._connection = connections.take()
        self._sock: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None

    def begin(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        """Send the request; the response with its status and headers. OSError and HTTPException as http.client has them."""
        was_idle = self._connection.sock is not None
        try:
            self._response = self._send(method, path, body, headers)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if not was_idle:
                raise
            self._connection.close()  # the server had closed it meanwhile
            self._response = self._send(method, path, body, headers)
        return self._response

    def line(self) -> bytes:
        """The next line of the response; empty at its end."""
        assert self._response is not None
        self._limit()
        return self._response.readline()

    def rest(self) -> bytes:
        """What of the response is not read yet."""
        assert self._response is not None
        self._limit()
        return self._response.read()

    def abort(self) -> None:
        """End what another thread waits for."""
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """Give the connection back, or close it where the response was not read to its end. May be called twice."""
        response, self._response, self._sock = self._response, None, None
        if response is not None and response.isclosed() and not response.will_close:
            self._connections.give_back(self._connection)
        else:
            self._connection.close()
        if response is not None:
            response.close()

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        connection = self._connection
        if connection.sock is None:
            connection.timeout = self._deadline.remaining()
            connection.connect()
            assert connection.sock is not None
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = connection.sock
        self._limit()
        connection.request(method, path, body, dict(headers))
        self._limit()
        return connection.getresponse()

    def _limit(self) -> None:
        if self._sock is not None:
            self._sock.settimeout(self._deadline.remaining())


def _context(tls: TLS) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise InvalidRequest(f"tls has a file that cannot be read: {error}; give PEM files") from error
    return context
