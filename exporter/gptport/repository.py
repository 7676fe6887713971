"""The Triton model repository: versions are written beside it and renamed into place.

Before a model's config.pbtxt is replaced, Triton serves the old version as it was; after, the new one. A crash in between leaves
a version that nothing names.
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

from . import triton_config, versions
from .errors import RepositoryError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

STEP_SUFFIX = "_step"
KV_SUFFIX = "_kv"
# What their names end in → (manifest, name, version, the one before, serving) → config.pbtxt.
STEP_MODELS = {STEP_SUFFIX: triton_config.step_model, KV_SUFFIX: triton_config.kv_model}
STEP_SUFFIXES = tuple(STEP_MODELS)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def checked_name(name: str) -> str:
    """A model name that is safe as a folder and in a URL.

    Raises:
        UsageError: it is not.
    """
    if not _NAME.fullmatch(name) or ".." in name or name.endswith(STEP_SUFFIXES):
        raise UsageError(
            f"model name {name!r} is not allowed: at most 100 letters, digits, '.', '_', '-', beginning with a letter or digit, "
            f"without '..', not ending in {' or '.join(STEP_SUFFIXES)}; choose one with --name"
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
        with locked(folder):
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
        with contextlib.suppress(OSError), locked(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel gives up when the process ends. Without `wait`, OSError if another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _may_stand_here(path: Path) -> bool:
    return path.name.startswith(".") or path.name == "README.md" or (path / "config.pbtxt").is_file()


def publish(
    repository: Path,
    staged: Path,
    configs: Mapping[str, Callable[[int, int | None], bytes]],
    keep: int | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> dict[str, Path]:
    """Make a staged folder the next version of one or more models that share it.

    The first model owns the folder. In the others the version is a relative link to it, so that graph and weights are on disk
    once; links to single files would not do: onnx and onnxruntime refuse weights that lie outside of the graph's folder.

    Args:
        repository: the repository's folder.
        staged: folder with the files of the version, in the folder that `staging` gave.
        configs: model name → (version, the one served before → content of its config.pbtxt), the owner first.
        keep: how many older versions stay, the one served before among them; None for all. The others go when the new one
            is in place.
        beside: path → content of files in the folder of the first model, such as its configuration asks for.

    Returns:
        model name → its new version folder.
    """
    sync(staged)
    owner, *others = configs
    with locked(repository):
        before = versions.served(repository / owner)
        version = max((n for name in configs for n in versions.versions(repository / name)), default=0) + 1
        written = {name: config(version, before) for name, config in configs.items()}
        for name, content in written.items():
            versions.write(staged / f"{name}.pbtxt", content)
        for name, content in written.items():
            link = Path("..") / owner / str(version) if name in others else None
            _put(repository / name, version, staged, link, content, beside if name == owner else None)
        versions.sync_path(repository)
        if keep is not None:
            unwanted = _unwanted(versions.versions(repository / owner), version, before, keep)
            for name in (*others, owner):
                versions.remove(repository / name, unwanted)
    return {name: repository / name / str(version) for name in configs}


def _put(
    model: Path,
    version: int,
    staged: Path,
    link: Path | None,
    config: bytes,
    beside: Mapping[str, bytes] | None,
) -> None:
    """Add a version to a model and name it in the configuration; a model that is new is put in place whole."""
    target = model if model.is_dir() else staged.parent / f"new-{model.name}"
    target.mkdir(exist_ok=True)
    versions.remove_leftovers(target)
    for name, content in (beside or {}).items():
        (target / name).parent.mkdir(exist_ok=True)
        versions.write(target / name, content)
    if link is not None:
        (target / str(version)).symlink_to(link)
    else:
        staged.replace(target / str(version))
    versions.sync_path(target)
    if target == model:
        versions.switch(model, config)
    else:
        versions.write(target / versions.CONFIG, config)
        target.replace(model)


def _unwanted(there: Sequence[int], version: int, before: int | None, keep: int) -> set[int]:
    """What goes of the versions that are there: all but the new one, the one served before, and the newest others."""
    older = [number for number in there if number not in (version, before)]
    stay = keep - (before is not None)
    return set(older[: len(older) - stay] if stay > 0 else older)


def sync(folder: Path) -> None:
    """Have the files of a folder on the disk before this returns; it costs nothing for those that are there already."""
    for path in [*folder.iterdir(), folder]:
        versions.sync_path(path)
