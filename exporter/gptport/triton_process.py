"""One tritonserver: started, watched, and ended without leaving anything behind."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import triton_install
from .errors import ServerError
from .model_processes import ModelProcesses
from .regions import Regions, remove_leftovers
from .server_log import last_error
from .triton_options import ServerOptions, command_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from .address import Address

KILL_SECONDS = 3.0  # after the drain; where requests are left, Triton 24.10 crashes at its end, and does not always come to it
LOOK_SECONDS = 1.0  # between two looks at the processes of the models

# Runs in the new process: have the kernel end tritonserver when gptport dies, even by SIGKILL.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Server:
    """A tritonserver that runs.

    Attributes:
        address: where it listens.
        models: the names of its models.
        log: the file with its log; None if that goes to standard error.
    """

    def __init__(
        self,
        repository: Path,
        models: Sequence[str],
        address: Address,
        log: Path | None,
        options: ServerOptions | None = None,
    ) -> None:
        self.address = address
        self.models = tuple(models)
        self.log = log
        self._options = options or ServerOptions()
        self._installation = triton_install.find()
        remove_leftovers()
        self._regions = Regions()
        self._folder = Path(tempfile.mkdtemp(prefix="gptport-server-"))
        try:
            backends = triton_install.assemble(self._installation, self._folder)
            with contextlib.ExitStack() as stack:
                sink = stack.enter_context(log.open("wb")) if log is not None else None
                self._process = self._launch(self._command_line(self._plain(repository), backends), sink)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._regions.remove()
            raise
        self._processes = ModelProcesses(self.pid)

    @property
    def pid(self) -> int:
        """The process id of tritonserver."""
        return self._process.pid

    def running(self) -> bool:
        """Whether the process is still there."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            ServerError: it did so by itself, or the process of a model did.
        """
        while (lost := self._processes.lost()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(LOOK_SECONDS)
                raise ServerError(f"tritonserver has ended by itself: {self.how_it_ended()}{self.see_log()}")
        of = f"the process of {lost.model}" if lost.model else "the process of a model"
        raise ServerError(
            f"{of} has ended by itself: {lost.ending}. Its requests would wait forever, so the server ends; "
            f"start it again{self.see_log()}"
        )

    def wait_until_ready(self, timeout: float | None) -> None:
        """Wait until every model is loaded.

        Raises:
            ServerError: a model cannot be loaded, the server has ended, or the time is over.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (states := self._states()) is None:
            if not self.running():
                raise ServerError(
                    f"tritonserver ended while it started: {self.how_it_ended()}{self.see_log()}"
                )
            if end is not None and time.monotonic() > end:
                raise ServerError(f"tritonserver is not ready after {timeout:g} s{self.see_log()}")
            time.sleep(0.05)
        for model in self.models:
            state, reason = states.get(model, ("UNAVAILABLE", "tritonserver does not know it"))
            if state != "READY":
                why = (
                    _first_line(reason)
                    or last_error(self.log, f"'{model}'")
                    or "tritonserver gives no reason"
                )
                raise ServerError(f"{model} cannot be loaded: {why}{self.see_log()}")
        self._processes.lost()  # learns whose they are, while all are there

    def stop(self) -> None:
        """End the server and what it started, and remove its files; may be called twice."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(self._options.drain_seconds + KILL_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server and what it started at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._regions.remove()

    def how_it_ended(self) -> str:
        """The last error in the log and the exit code, for a message."""
        code = self._process.poll() or 0
        ending = f"signal {-code}" if code < 0 else f"exit code {code}"
        error = last_error(self.log)
        return f"{error} ({ending})" if error else ending

    def see_log(self) -> str:
        """Where the log is, as the end of a message."""
        return f"; its log is {self.log}" if self.log is not None else ""

    def _plain(self, repository: Path) -> Path:
        """A path of the repository that is one ASCII word to a shell: Triton starts the process of a model with `bash -c`."""
        path = repository.resolve()
        if shlex.quote(str(path)) == str(path):
            return path
        link = self._folder / "repository"
        link.symlink_to(path)
        return link

    def _command_line(self, repository: Path, backends: Path) -> list[str]:
        return command_line(
            repository,
            backends,
            self.models,
            self.address,
            self._options,
            self._regions.prefix,
            lambda option: triton_install.knows(self._installation, self._folder, option),
        )

    def _launch(self, arguments: list[str], sink: IO[bytes] | None) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, so that a Ctrl-C reaches it through us only, and all of it ends at once."""
        launcher = [
            sys.executable,
            "-I",
            "-S",
            "-c",
            _LAUNCH,
            str(os.getpid()),
            str(self._installation.binary),
        ]
        return subprocess.Popen(
            launcher + arguments,
            stdin=subprocess.DEVNULL,
            stdout=sink if sink is not None else sys.stderr.fileno(),
            stderr=subprocess.STDOUT,
            env=triton_install.environment(self._installation, self._folder),
            start_new_session=True,
        )

    def _states(self) -> dict[str, tuple[str, str]] | None:
        """Model → state and reason; None while the server does not answer."""
        connection = http.client.HTTPConnection(self.address.host, self.address.http_port, timeout=5)
        try:
            connection.request("POST", "/v2/repository/index", "{}", self._options.admin_headers)
            models = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return {model["name"]: (model.get("state", ""), model.get("reason", "")) for model in models}


def _first_line(reason: str) -> str:
    """What went wrong, of a reason that may go on with a Python traceback."""
    text = reason.split("\n\nAt:")[0].split("\n  At:")[0].strip()
    return " ".join(text.removeprefix("Internal: ").split())
