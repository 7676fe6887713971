"""The tritonserver that is there, and a backend folder that it can run gptport's models with."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import libpython
from .errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")

_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class Installation:
    """A tritonserver.

    Attributes:
        binary: the executable.
        backends: the folder of its own backends.
        stub: the process that runs Python backends with this Python; None where it lies in `backends` already.
        libraries: folder of the shared libraries that came with it; None where they are found without help.
    """

    binary: Path
    backends: Path
    stub: Path | None = None
    libraries: Path | None = None


def find() -> Installation:
    """The tritonserver on PATH with its backends (Triton's container), else the one of the `[serve]` extra.

    Raises:
        ServerError: there is none.
    """
    on_path = shutil.which("tritonserver")
    if on_path is not None and CONTAINER_BACKENDS.is_dir():
        return Installation(Path(on_path), CONTAINER_BACKENDS)
    package = _package("pytriton")
    if package is None:
        raise ServerError("there is no tritonserver here; install one with: pip install 'gptport[serve]'")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / version / _STUB
    binary = root / "bin" / "tritonserver"
    if not stub.is_file() or not binary.is_file():
        raise ServerError(
            f"the tritonserver in {package} is incomplete, or not for Python {version}; "
            "install it again with: pip install --force-reinstall 'gptport[serve]'"
        )
    return Installation(binary, root / "backends", stub, package.parent / "nvidia_pytriton.libs")


def _package(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    locations = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(locations))) if locations else None


def assemble(installation: Installation, folder: Path) -> Path:
    """Put links to the installation's backends and to gptport's own into a folder.

    Returns:
        the backend folder, for `--backend-directory`.

    Raises:
        ServerError: a part is missing.
    """
    ours = _package("gptport_backend")
    if ours is None or _package("onnxruntime") is None:
        raise ServerError("the backend's packages are not installed: pip install 'gptport[serve]'")
    backends = folder / "backends"
    backends.mkdir()
    for backend in installation.backends.iterdir():
        if backend.name != "python" or installation.stub is None:
            (backends / backend.name).symlink_to(backend)
    if installation.stub is not None:
        _add_python_backend(installation, installation.stub, folder)
    _add_model(backends / "gptport", ours / "model.py")
    if not (backends / "onnxruntime").exists():
        _add_model(backends / "onnxruntime", ours / "onnxruntime_stand_in.py")
    return backends


def _add_python_backend(installation: Installation, stub: Path, folder: Path) -> None:
    """Triton looks for the stub beside the library of the Python backend, and follows no link out of the folder."""
    python = folder / "backends" / "python"
    shutil.copytree(installation.backends / "python", python, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(stub, python)
    library = libpython.find()
    if library is None:  # Triton would wait, without an end, for a process that cannot start
        raise ServerError(libpython.ADVICE)
    # A folder with nothing but libpython: the interpreter's own may hold a libstdc++ that is too old for Triton.
    libraries = folder / "lib"
    libraries.mkdir()
    (libraries / libpython.NAME).symlink_to(library)


def _add_model(folder: Path, model: Path) -> None:
    folder.mkdir()
    (folder / "model.py").symlink_to(model)


def environment(
    installation: Installation, folder: Path, base: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Environment variables with which tritonserver and the Python processes it starts find their parts.

    Args:
        installation: what is started.
        folder: what `assemble` has filled.
        base: the variables to start from.
    """
    backend = _package("gptport_backend")
    assert backend is not None
    added = {"PATH": [Path(sys.executable).parent], "PYTHONPATH": [backend.parent]}
    if installation.libraries is not None:
        added["LD_LIBRARY_PATH"] = [folder / "lib", installation.libraries]
    values = dict(base)
    for name, first in added.items():
        rest = [values[name]] if values.get(name) else []
        values[name] = os.pathsep.join([*map(str, first), *rest])
    return values


def knows(installation: Installation, folder: Path, option: str) -> bool:
    """Whether this tritonserver has an option; they come and go with the release.

    Args:
        installation: the tritonserver.
        folder: what `assemble` has filled.
        option: its name without the dashes.
    """
    asked = subprocess.run(
        [installation.binary, "--help"],
        env=environment(installation, folder),
        capture_output=True,
        text=True,
        check=False,
    )
    return f"--{option} " in asked.stdout + asked.stderr
