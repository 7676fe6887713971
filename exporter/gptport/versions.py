"""The versions of a model: which are there, which one is served, and how another one comes to be.

A model's config.pbtxt names the one version that it was written for, so replacing that file is what switches. Each version folder
holds the configuration of every model that shares it, as NAME.pbtxt, so that a switch back finds what there was.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from . import triton_config

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

CONFIG = "config.pbtxt"

_PARTLY = ".config.pbtxt"
_REMOVED = ".removed-"


def versions(model: Path) -> list[int]:
    """The version numbers of a model, ascending; empty if there is no such model."""
    if not model.is_dir():
        return []
    return sorted(int(p.name) for p in model.iterdir() if p.is_dir() and p.name.isdecimal())


def served(model: Path) -> int | None:
    """The version that the model's configuration names; None if there is no such model.

    Raises:
        RepositoryError: the configuration cannot be read.
    """
    there = versions(model)
    path = model / CONFIG
    if not path.is_file():
        return None
    named = triton_config.parse(path).version_policy.specific.versions
    return max(named) if named else there[-1] if there else None


def served_before(model: Path) -> int | None:
    """The version that was served when the present one came; None for the first."""
    value = triton_config.parse(model / CONFIG).parameters[triton_config.PREVIOUS].string_value
    return int(value) if value.isdecimal() else None


def configuration(model: Path, version: int) -> Path:
    """Where a version keeps the model's configuration."""
    return model / str(version) / f"{model.name}.pbtxt"


def switch(model: Path, config: bytes) -> None:
    """Make `config` the model's configuration; the one before stays with its version, with what was changed in it by hand."""
    now = served(model)
    if now is not None and (model / str(now)).is_dir():
        write(configuration(model, now), (model / CONFIG).read_bytes())
    write(model / CONFIG, config)


def write(path: Path, content: bytes) -> None:
    """Replace a file at once, on the disk before this returns."""
    temporary = path.with_name(_PARTLY)
    temporary.write_bytes(content)
    sync_path(temporary)
    temporary.replace(path)
    sync_path(path.parent)


def remove(model: Path, unwanted: Collection[int]) -> None:
    """Remove versions, each at once: what a crash leaves of one is hidden, and removed by `remove_leftovers`."""
    for version in unwanted:
        folder = model / str(version)
        if folder.is_symlink():
            folder.unlink()
        elif folder.is_dir():
            folder.replace(model / f"{_REMOVED}{version}")
    sync_path(model)
    remove_leftovers(model)


def remove_leftovers(model: Path) -> None:
    """Remove what a killed export left in the folder of a model."""
    for left in model.glob(f"{_REMOVED}*"):
        shutil.rmtree(left, ignore_errors=True)
    for left in (model / _PARTLY, *model.glob(f"*/{_PARTLY}")):
        left.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
