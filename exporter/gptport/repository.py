"""The Triton model repository: versions written beside it and renamed into place, config.pbtxt through protobuf."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

STEP_SUFFIX = "_step"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str) -> str:
    """A model name that is safe as a folder and in a URL.

    Raises:
        UsageError: it is not.
    """
    if not _NAME.fullmatch(name) or ".." in name or name.endswith(STEP_SUFFIX):
        raise UsageError(
            f"model name {name!r} is not allowed: at most 100 letters, digits, '.', '_', '-', beginning with a letter or digit, "
            f"without '..', not ending in {STEP_SUFFIX!r}; choose one with --name"
        )
    return name


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's file system, which is removed again whatever happens.

    Raises:
        RepositoryError: the folder cannot be written, or holds something that is not a model repository.
    """
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is a file; a model repository is a folder")
    foreign = [p.name for p in repository.iterdir() if not _may_stand_here(p)] if repository.is_dir() else []
    if foreign:
        raise RepositoryError(
            f"{repository} is not a model repository: {foreign[0]} is no model; choose another folder with --repository"
        )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        # A name with a leading dot: Triton would take the folder for a model if it polled at this moment, but for that.
        folder = Path(tempfile.mkdtemp(prefix=".gptport-", dir=repository))
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _may_stand_here(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "README.md" or (path / "config.pbtxt").is_file()


def publish(repository: Path, staged: Path, configs: dict[str, bytes]) -> dict[str, Path]:
    """Make a staged folder the next version of one or more models that share it.

    The first model owns the folder. In the others the version is a relative link to it, so that graph and weights are on disk
    once; links to single files would not do: onnx and onnxruntime refuse weights that lie outside of the graph's folder.

    Args:
        repository: the repository's folder.
        staged: folder with the files of the version, on the same file system.
        configs: model name → content of its config.pbtxt, the owner first.

    Returns:
        model name → its new version folder.
    """
    version = str(max((_last_version(repository / name) for name in configs), default=0) + 1)
    sync(staged)
    owner, *others = configs
    for name in configs:
        (repository / name).mkdir(exist_ok=True)
    staged.replace(repository / owner / version)
    for name in others:
        (repository / name / version).symlink_to(Path("..") / owner / version)
    for name, config in configs.items():
        _replace_file(repository / name / "config.pbtxt", config)
        _sync_path(repository / name)
    _sync_path(repository)
    return {name: repository / name / version for name in configs}


def versions(model: Path) -> list[int]:
    """The version numbers of a model, ascending; empty if there is no such model."""
    if not model.is_dir():
        return []
    return sorted(int(p.name) for p in model.iterdir() if p.is_dir() and p.name.isdecimal())


def _last_version(model: Path) -> int:
    return max(versions(model), default=0)


def _replace_file(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    _sync_path(temporary)
    temporary.replace(path)


def sync(folder: Path) -> None:
    """Have the files of a folder on the disk before this returns; it costs nothing for those that are there already."""
    for path in [*folder.iterdir(), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
