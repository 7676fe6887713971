"""Serve a model repository: `serve` for the command, `running` for programs."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .address import Address
from .errors import RepositoryError, ServerError
from .manifest import FILE_NAME
from .repository import STEP_SUFFIXES
from .triton_process import Server
from .versions import versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .triton_options import ServerOptions

READY_SECONDS = 120.0


def serve(
    repository: Path,
    *,
    models: Sequence[str] = (),
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    options: ServerOptions | None = None,
    say: Callable[[str], None],
    show_log: bool = False,
) -> int:
    """Serve until a signal (Ctrl-C, SIGTERM, SIGHUP) asks for the end; a second one does not wait for what runs.

    Args:
        repository: the folder with the models.
        models: only these, with their step models; none means all.
        host: address to listen on.
        http_port, grpc_port, metrics_port: ports to listen on.
        options: how the server behaves.
        say: shows a line to the user.
        show_log: let the server's log go to standard error.

    Returns:
        0, once the server is stopped.

    Raises:
        UsageError: a port is none.
        RepositoryError: the repository is not there, or is not ours.
        ServerError: tritonserver is not there, cannot serve the models, or has ended by itself, or the process of a model has.
    """
    address = Address(host, http_port, grpc_port, metrics_port)
    try:
        with (
            _ended_by_signals(),
            running(repository, models, address, options, timeout=None, show_log=show_log) as server,
        ):
            say(f"Serving {', '.join(server.models)}. Ctrl-C stops.")
            say(f"HTTP {address.http_url}   gRPC {address.grpc_url}   metrics {address.metrics_url}")
            server.wait()
    except _Ended:
        say("Stopped.")
    return 0


class _Ended(Exception):  # noqa: N818 - no error
    """A signal asks for the end."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise _Ended where SIGINT, SIGTERM or SIGHUP arrives."""

    def end(*_: object) -> None:
        raise _Ended

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running(
    repository: Path,
    models: Sequence[str] = (),
    address: Address | None = None,
    options: ServerOptions | None = None,
    *,
    timeout: float | None = READY_SECONDS,
    show_log: bool = False,
) -> Iterator[Server]:
    """A server with the models of a repository, ready; it is stopped at the end.

    The kernel ends the server, too, where the thread ends that came here: that should be the main thread. The log is in a
    temporary file, which stays if something goes wrong.

    Args:
        repository: the folder.
        models: only these, with their step models; none means all.
        address: where to listen; free ports of this machine without it.
        options: how the server behaves.
        timeout: seconds until it must be ready; None waits as long as it takes.
        show_log: let the log go to standard error instead.

    Raises:
        RepositoryError: the repository is not there, or is not ours.
        ServerError: tritonserver is not there, or cannot serve the models.
    """
    chosen = models_of(repository, models)
    where = address or Address.free()
    where.check_free()
    log = None if show_log else _temporary_log()
    keep_log = False
    try:
        server = Server(repository, chosen, where, log, options)
        try:
            server.wait_until_ready(timeout)
            yield server
        finally:
            server.stop()
    except ServerError:
        keep_log = log is not None and log.stat().st_size > 0
        raise
    finally:
        if log is not None and not keep_log:
            log.unlink(missing_ok=True)


def _temporary_log() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="gptport-server-", suffix=".log")
    os.close(descriptor)
    return Path(name)


def models_of(repository: Path, wanted: Sequence[str] = ()) -> list[str]:
    """The models of a repository, or those of `wanted` with the step models that belong to them.

    Raises:
        RepositoryError: the folder or a model is not there, or was not written by gptport.
    """
    if not repository.is_dir():
        raise RepositoryError(f"there is no folder {repository}; write one with: gptport export CHECKPOINT")
    there = sorted(
        path.name for path in repository.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not there:
        raise RepositoryError(f"{repository} holds no model; add one with: gptport export CHECKPOINT")
    for name in wanted:
        if not {name, *(name + suffix for suffix in STEP_SUFFIXES)} & {*there}:
            raise RepositoryError(f"{repository} has no model {name!r}; it has {', '.join(there)}")
    steps = {name + suffix for name in wanted for suffix in STEP_SUFFIXES}
    chosen = [name for name in there if not wanted or name in wanted or name in steps]
    for name in chosen:
        _check_model(repository / name)
    return chosen


def _check_model(model: Path) -> None:
    if not (model / "config.pbtxt").is_file():
        raise RepositoryError(f"{model} is not a model: it has no config.pbtxt")
    numbers = versions(model)
    if not numbers:
        raise RepositoryError(f"{model} is not a model: it has no version folder; export it again")
    if not (model / str(numbers[-1]) / FILE_NAME).is_file():
        raise RepositoryError(f"{model}/{numbers[-1]} was not written by gptport: it has no {FILE_NAME}")
