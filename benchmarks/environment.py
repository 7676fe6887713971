"""A virtual environment for each peer, made from its pinned requirements when it is first needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import urllib.request
from pathlib import Path

from benchmarks import process

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "benchmarks"
REQUIREMENTS = Path(__file__).parent / "peers"
OURS = "gptport"


def python(peer: str) -> Path:
    """The interpreter of the environment of `peer`, which is made if it is missing or its requirements have changed.

    gptport itself runs in the environment that the harness runs in.
    """
    if peer == OURS:
        return Path(sys.executable)
    requirements = REQUIREMENTS / f"{peer}.txt"
    folder = CACHE / "environments" / peer
    stamp = folder / "requirements.sha256"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        _make(folder, requirements)
        stamp.write_text(digest)
    return folder / "bin" / "python"


def digest(peer: str) -> str:
    """The sha256 of the peer's module and requirements: what it has made is as old as these."""
    files = (REQUIREMENTS / f"{peer}.py", REQUIREMENTS / f"{peer}.txt")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()


def _make(folder: Path, requirements: Path) -> None:
    sys.stderr.write(f"installing {requirements.stem} into {folder.relative_to(ROOT)}\n")
    shutil.rmtree(folder, ignore_errors=True)
    log = CACHE / "logs" / f"install-{requirements.stem}.log"
    process.run([sys.executable, "-m", "venv", str(folder)], log)
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        "install",
    ]
    # Without the cache: pip takes a wheel from there that was compiled with other settings.
    process.run([*install, "--no-cache-dir", "--no-deps", "-r", str(requirements), *_torch_index()], log)


def _torch_index() -> list[str]:
    """The index of torch without CUDA, if TORCH_CPU_INDEX names one that answers; its versions sort before plain ones."""
    index = os.environ.get("TORCH_CPU_INDEX")
    try:
        if index:
            urllib.request.urlopen(f"{index}/torch/", timeout=5).close()
            return ["--extra-index-url", index]
    except OSError:
        pass
    return []
