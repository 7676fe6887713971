"""Python as a shared library: Triton's Python processes link to it, and Debian's python3 comes without it.

`python -m gptport.libpython FOLDER` sees to it that there is one: where it is missing, it is taken out of Debian's package
into FOLDER, which needs no root.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

NAME = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
PACKAGE = NAME.removesuffix(".so.1.0")
ADVICE = f"tritonserver needs {NAME}, which is not here; on Debian and Ubuntu: sudo apt install {PACKAGE}"


def find() -> Path | None:
    """The library of this interpreter's version; the virtual environment's own comes first."""
    libdir = sysconfig.get_config_var("LIBDIR") or "/usr/lib"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    folders = [Path(sys.prefix, "lib"), Path(sys.base_prefix, "lib"), Path(libdir), Path(libdir, multiarch)]
    folders += [Path("/usr/lib", multiarch), Path("/usr/lib64")]
    return next((folder / NAME for folder in folders if (folder / NAME).is_file()), None)


def fetch(folder: Path) -> bool:
    """Take the library out of the Debian package that has it; whether that was possible."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return False
    with tempfile.TemporaryDirectory() as work:
        if not _ran(["apt-get", "download", "-qq", PACKAGE], work):
            return False
        packages = list(Path(work).glob("*.deb"))
        if not packages or not _ran(["dpkg-deb", "-x", str(packages[0]), "unpacked"], work):
            return False
        libraries = list(Path(work, "unpacked").rglob(NAME))
        if not libraries:
            return False
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(libraries[0], folder / NAME)
    return True


def _ran(command: list[str], folder: str) -> bool:
    result = subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return result.returncode == 0


if __name__ == "__main__":
    if find() is None and not fetch(Path(sys.argv[1])):
        sys.exit(ADVICE)
