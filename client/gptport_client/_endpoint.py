"""A server's address: its parts, and how a connection to it is secured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from gptport_client._errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Protocol: TypeAlias = Literal["grpc", "http"]

_URL = re.compile(
    r"(?:(?P<scheme>grpcs?|https?)://)?(?P<host>\[[0-9a-fA-F:.]+\]|[^/:\s\[\]]+)(?::(?P<port>\d{1,5}))?/?"
)
_DEFAULT_PORTS = {"grpc": 8001, "http": 8000}


@dataclass(frozen=True)
class TLS:
    """How a connection is secured; with all fields left out, as a browser does it.

    Attributes:
        ca: PEM file with the certificates that the server's has to lead to; None takes the system's.
        certificate, key: PEM files of this client's own certificate, for servers that ask for one.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise InvalidRequest("tls has only one of certificate and key; give both or none")


@dataclass(frozen=True)
class Endpoint:
    """Where and how a server is reached.

    Attributes:
        protocol: `grpc` or `http`.
        host: without a port; an IPv6 address in brackets.
        port: of that protocol.
        tls: None is a connection in the clear.
        headers: sent with each request, names in lower case.
    """

    protocol: Protocol
    host: str
    port: int
    tls: TLS | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """Where Triton shows its metrics unless told otherwise."""
        return f"http://{self.host}:8002/metrics"


def read_endpoint(url: str, tls: TLS | None = None, headers: Mapping[str, str] | None = None) -> Endpoint:
    """The endpoint of `url`: `host:port` or `grpc://` (`grpcs://` with TLS), `http://` or `https://`.

    Raises:
        InvalidRequest: it is none, or a header's name or value cannot be sent.
    """
    found = _URL.fullmatch(url) if isinstance(url, str) else None
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        raise InvalidRequest(
            f"url is {url!r}; give host:port of the server's gRPC endpoint, or http://host:port of its HTTP endpoint"
        )
    scheme = found["scheme"] or "grpc"
    secure = scheme in ("grpcs", "https")
    protocol = cast("Protocol", scheme.removesuffix("s"))
    return Endpoint(
        protocol,
        found["host"],
        int(found["port"] or _DEFAULT_PORTS[protocol]),
        tls or (TLS() if secure else None),
        tuple(_header(name, value) for name, value in (headers or {}).items()),
    )


def _header(name: object, value: object) -> tuple[str, str]:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise InvalidRequest(f"headers has the name {name!r}; give letters, digits, '-', '_' and '.'")
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        raise InvalidRequest(f"headers[{name!r}] cannot be sent; give printable ASCII text")
    return name.lower(), value
