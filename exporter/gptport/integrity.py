"""Whether the files of a version are those that its manifest describes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from . import adapters
from .errors import RepositoryError
from .manifest import FILE_NAME, File

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest

_CONFIGURATION = ".pbtxt"  # changed where a user changes it; see versions.py


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files of a version folder, a line each; empty if nothing is."""
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(lambda name: _damage(folder / name, manifest.files[name]), manifest.files))
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    extra = sorted(
        name
        for name in there - manifest.files.keys() - {FILE_NAME, adapters.FOLDER}
        if not name.endswith(_CONFIGURATION)
    )
    return [
        *filter(None, found),
        *(f"{folder / name} is not in the manifest" for name in extra),
        *(wrong for adapter in adapters.there(folder) if (wrong := _adapter_damage(adapter))),
    ]


def _adapter_damage(folder: Path) -> str | None:
    try:
        return _damage(folder / adapters.WEIGHTS, adapters.described(folder))
    except RepositoryError as error:
        return str(error)


def _damage(path: Path, expected: File) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    size = path.stat().st_size
    if size != expected.bytes:
        return f"{path} has {size:,} bytes, the manifest says {expected.bytes:,}"
    sha256 = File.of(path).sha256
    if sha256 != expected.sha256:
        return f"{path} is damaged: its sha256 is {sha256}, the manifest says {expected.sha256}"
    return None
