"""Where a server listens."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from dataclasses import dataclass

from .errors import ServerError, UsageError


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    http_port: int
    grpc_port: int
    metrics_port: int

    def __post_init__(self) -> None:
        for name, port in self.ports.items():
            if not 1 <= port <= 65535:
                raise UsageError(f"{name} {port} is not a port; give 1 to 65535")
        if len(set(self.ports.values())) < len(self.ports):
            raise UsageError("--http-port, --grpc-port and --metrics-port must differ")

    @classmethod
    def free(cls, host: str = "127.0.0.1") -> Address:
        """Three ports that nobody uses now, and that the kernel gives nobody who asks for any: those are from 32768 on."""
        ports: list[int] = []
        with contextlib.ExitStack() as stack:
            while len(ports) < 3:
                port = random.randrange(10_000, 32_768)
                try:
                    stack.enter_context(socket.socket()).bind((host, port))
                except OSError as error:
                    if error.errno != errno.EADDRINUSE:
                        raise
                else:
                    ports.append(port)
        return cls(host, *ports)

    @property
    def ports(self) -> dict[str, int]:
        """The option of each port → the port."""
        return {
            "--http-port": self.http_port,
            "--grpc-port": self.grpc_port,
            "--metrics-port": self.metrics_port,
        }

    @property
    def http_url(self) -> str:
        """As http://host:port."""
        return f"http://{self._shown}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        """As host:port, which is how gRPC clients want it."""
        return f"{self._shown}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Of the metrics in Prometheus' format."""
        return f"http://{self._shown}:{self.metrics_port}/metrics"

    @property
    def _shown(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def check_free(self) -> None:
        """Raise ServerError unless all three ports can be listened on."""
        for option, port in self.ports.items():
            try:
                _listen(self.host, port)
            except OSError as error:
                wrong = "--host" if isinstance(error, socket.gaierror) else option
                raise ServerError(
                    f"cannot listen on {self.host} port {port}: {error.strerror}; choose another with {wrong}"
                ) from error


def _listen(host: str, port: int) -> None:
    """Listen for a moment; whoever listened here a moment ago does not count, as it does not for tritonserver."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen()
