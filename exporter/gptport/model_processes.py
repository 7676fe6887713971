"""The processes in which Triton's python backend runs the models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Lost:
    """A process that has ended although Triton did not ask it to.

    Attributes:
        model: whose it was; empty if that is not known.
        ending: as `signal 9` or `exit code 1`.
    """

    model: str
    ending: str


class ModelProcesses:
    """Looks after the children of a tritonserver, which does not itself notice that one has died.

    Triton 24.10 then stays ready, and requests on their way are never answered, also not when the model is loaded anew.
    """

    def __init__(self, server: int, proc: Path = Path("/proc")) -> None:
        self._server = server
        self._proc = proc
        self._models: dict[int, str] = {}  # of all that were seen alive
        self._ended: set[int] = set()  # at the last look

    def lost(self) -> Lost | None:
        """A process that has ended, and that Triton has not waited for since the look before; it does when it unloads a model."""
        ended = set()
        for pid, state, ending in self._children():
            if state == "Z":
                ended.add(pid)
                if pid in self._ended:
                    return Lost(self._models.get(pid, ""), ending)
            elif pid not in self._models:
                self._models[pid] = self._model(pid)
        self._ended = ended
        return None

    def _children(self) -> list[tuple[int, str, str]]:
        """Process id, state and ending of each child, as proc_pid_stat(5) describes them."""
        found = []
        for path in self._proc.glob("[0-9]*/stat"):
            try:
                fields = path.read_text(errors="replace").rpartition(")")[2].split()
            except OSError:  # it has gone meanwhile
                continue
            if int(fields[1]) == self._server:
                found.append((int(path.parent.name), fields[0], _ending(int(fields[49]))))
        return found

    def _model(self, pid: int) -> str:
        """Of the path of a model's code, …/MODEL/VERSION/model.py, the second argument of such a process."""
        try:
            arguments = (self._proc / str(pid) / "cmdline").read_text(errors="replace").split("\0")
        except OSError:
            return ""
        path = Path(arguments[1]) if len(arguments) > 1 else Path()
        return path.parent.parent.name if path.name == "model.py" else ""


def _ending(status: int) -> str:
    return f"signal {status & 0x7F}" if status & 0x7F else f"exit code {status >> 8}"
