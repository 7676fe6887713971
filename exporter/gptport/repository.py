"""The Triton model repository: versions are written beside it and renamed into place.

A model's config.pbtxt names the one version that it was written for, so replacing that file is what switches to a new version:
before, Triton serves the old one as it was; after, the new one. A crash in between leaves a version that nothing names.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

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


_STAGING = ".gptport-staging-"


@contextlib.contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's file system, which is removed again whatever happens.

    It lies beside the repository, where Triton does not look; in it only where the repository is a mount of its own.

    Raises:
        RepositoryError: the folder cannot be written, or holds something that is not a model repository.
    """
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is a file; a model repository is a folder")
    foreign = (
        sorted(p.name for p in repository.iterdir() if not _may_stand_here(p)) if repository.is_dir() else []
    )
    if foreign:
        raise RepositoryError(
            f"{repository} is not a model repository: {foreign[0]} is no model; choose another folder with --repository"
        )
    try:
        repository.mkdir(parents=True, exist_ok=True)
        place = _staging_place(repository)
        _remove_abandoned(place)
        folder = Path(tempfile.mkdtemp(prefix=_STAGING, dir=place))
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error.strerror}") from error
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _staging_place(repository: Path) -> Path:
    parent = repository.resolve().parent
    beside = parent.stat().st_dev == repository.stat().st_dev and os.access(parent, os.W_OK)
    return parent if beside else repository


def _remove_abandoned(place: Path) -> None:
    """Remove what killed exports left behind: nobody holds its lock."""
    for folder in place.glob(f"{_STAGING}*"):
        with contextlib.suppress(OSError), _locked(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel gives up when the process ends. Without `wait`, OSError if another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _may_stand_here(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "README.md" or (path / "config.pbtxt").is_file()


def publish(repository: Path, staged: Path, configs: Mapping[str, Callable[[int], bytes]]) -> dict[str, Path]:
    """Make a staged folder the next version of one or more models that share it.

    The first model owns the folder. In the others the version is a relative link to it, so that graph and weights are on disk
    once; links to single files would not do: onnx and onnxruntime refuse weights that lie outside of the graph's folder.

    Args:
        repository: the repository's folder.
        staged: folder with the files of the version, in the folder that `staging` gave.
        configs: model name → (version → content of its config.pbtxt), the owner first.

    Returns:
        model name → its new version folder.
    """
    sync(staged)
    owner, *others = configs
    with _locked(repository):
        version = max((number for name in configs for number in versions(repository / name)), default=0) + 1
        for name in configs:
            link = Path("..") / owner / str(version) if name in others else None
            _put(repository / name, version, staged, link, configs[name](version))
        _sync_path(repository)
    return {name: repository / name / str(version) for name in configs}


def _put(model: Path, version: int, staged: Path, link: Path | None, config: bytes) -> None:
    """Add a version to a model and name it in the configuration; a model that is new is put in place whole."""
    target = model if model.is_dir() else staged.parent / f"new-{model.name}"
    target.mkdir(exist_ok=True)
    if link is not None:
        (target / str(version)).symlink_to(link)
    else:
        staged.replace(target / str(version))
    _sync_path(target)
    _replace_file(target / "config.pbtxt", config)
    _sync_path(target)
    if target != model:
        target.replace(model)


def versions(model: Path) -> list[int]:
    """The version numbers of a model, ascending; empty if there is no such model."""
    if not model.is_dir():
        return []
    return sorted(int(p.name) for p in model.iterdir() if p.is_dir() and p.name.isdecimal())


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
