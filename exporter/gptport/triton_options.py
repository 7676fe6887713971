"""The options that tritonserver is started with, the same on a laptop and in a container."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from .address import Address

ADMIN_HEADER = "gptport-admin-key"
_ADMIN_CALLS = "model-repository,shared-memory,logging,trace"
_CLIENT_SHM = "allow-client-shm"


@dataclass(frozen=True)
class ServerOptions:
    """How a server behaves, whatever it serves.

    Attributes:
        drain_seconds: what runs may take this long to finish after a signal.
        admin_key: who loads and unloads models, lists them, sets logging and tracing or registers shared memory must
            send it as the header `gptport-admin-key` (gRPC: `triton-grpc-protocol-gptport-admin-key`); None: anyone may.
        trace_url: of an OpenTelemetry collector that takes spans over HTTP; None: requests are not traced.
        trace_rate: of so many requests one is traced.
    """

    drain_seconds: int = 5
    admin_key: str | None = None
    trace_url: str | None = None
    trace_rate: int = 1

    def __post_init__(self) -> None:
        if self.drain_seconds < 0:
            raise UsageError(f"--drain is {self.drain_seconds}; give 0 or more seconds")
        key = self.admin_key
        if key is not None and (not key.isascii() or not key.isprintable() or not key or " " in key):
            raise UsageError("the admin key must be printable ASCII without spaces, and not empty")

        if self.trace_url is not None and not self.trace_url.startswith(("http://", "https://")):
            raise UsageError(
                f"--trace is {self.trace_url}; give a URL such as http://localhost:4318/v1/traces"
            )

    @property
    def admin_headers(self) -> dict[str, str]:
        """The HTTP headers of an admin call."""
        return {} if self.admin_key is None else {ADMIN_HEADER: self.admin_key}


def admin_key(environment: Mapping[str, str]) -> str:
    """The key in $GPTPORT_ADMIN_KEY, or else one that nobody knows."""
    return environment.get("GPTPORT_ADMIN_KEY") or secrets.token_hex()


def command_line(
    repository: Path,
    backends: Path,
    models: Sequence[str],
    address: Address,
    options: ServerOptions,
    region_prefix: str,
    knows: Callable[[str], bool],
) -> list[str]:
    """The arguments of tritonserver.

    Args:
        repository: the folder with the models.
        backends: the folder that `triton_install.assemble` made.
        models: those to load.
        address: where to listen.
        options: how to behave.
        region_prefix: begins the names of what it makes in /dev/shm.
        knows: whether this tritonserver knows an option.
    """
    values = {
        "model-repository": repository,
        "backend-directory": backends,
        "model-control-mode": "explicit",
        # Our own look at each model's state says more than the server's exit does.
        "exit-on-error": "false",
        "exit-timeout-secs": options.drain_seconds,
        "http-address": address.host,
        "grpc-address": address.host,
        "metrics-address": address.host,
        "http-port": address.http_port,
        "grpc-port": address.grpc_port,
        "metrics-port": address.metrics_port,
    }
    if options.admin_key is not None:
        values["http-restricted-api"] = f"{_ADMIN_CALLS}:{ADMIN_HEADER}={options.admin_key}"
        values["grpc-restricted-protocol"] = f"{_ADMIN_CALLS}:{ADMIN_HEADER}={options.admin_key}"
    if knows(_CLIENT_SHM):  # since 26.04, where it is off unless asked for
        values[_CLIENT_SHM] = str(_is_loopback(address.host)).lower()
    listed = [f"--{name}={value}" for name, value in values.items()]
    listed += [f"--load-model={name}" for name in models]
    listed += [f"--trace-config={setting}" for setting in _trace_settings(options)]
    for backend in ("python", "gptport", "onnxruntime"):
        listed.append(f"--backend-config={backend},shm-region-prefix-name={region_prefix}")
    return listed


def _trace_settings(options: ServerOptions) -> list[str]:
    """Each as MODE,NAME=VALUE or NAME=VALUE, as Triton wants them."""
    if options.trace_url is None:
        return []
    own = {"url": options.trace_url, "resource": "service.name=gptport"}
    everywhere = {"mode": "opentelemetry", "level": "TIMESTAMPS", "rate": options.trace_rate}
    return [
        *(f"{name}={value}" for name, value in everywhere.items()),
        *(f"opentelemetry,{name}={value}" for name, value in own.items()),
    ]


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; shared memory is of no use to others."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
