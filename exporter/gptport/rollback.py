"""Back to a version that was exported before: all its models switch to it, with the configurations that they had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import manifest
from .errors import RepositoryError, UsageError
from .repository import STEP_MODELS, STEP_SUFFIX, STEP_SUFFIXES, locked
from .triton_config import parse
from .versions import CONFIG, configuration, served, served_before, switch, sync_path, versions, write

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Switched:
    """What a rollback did.

    Attributes:
        models: the models that switched.
        before: the version that was served; None if the configuration named none.
        after: the version that is served now.
    """

    models: tuple[str, ...]
    before: int | None
    after: int


def rollback(model: Path, to: int | None = None) -> Switched:
    """Serve another version of a model and of its step models.

    A crash in between leaves each with a version that is whole; the same command then finishes.

    Args:
        model: folder of the model in its repository.
        to: the version; None for the one that was served before the present one.

    Raises:
        RepositoryError: there is no such model or version, or its configuration is not known.
        UsageError: there is no version before the present one.
    """
    for suffix in STEP_SUFFIXES:
        model = model.with_name(model.name.removesuffix(suffix))
    alone = model.with_name(model.name + STEP_SUFFIX)  # of a graph whose cache grows there is no text model
    if not (model / CONFIG).is_file() and (alone / CONFIG).is_file():
        model = alone
    if not (model / CONFIG).is_file():
        raise RepositoryError(
            f"{model} is not a model: it has no {CONFIG}; give its folder, such as model_repository/smollm2"
        )
    with locked(model.parent):
        before = served(model)
        target = _target(model, to)
        steps = (
            {model.with_name(model.name + suffix): make for suffix, make in STEP_MODELS.items()}
            if model != alone
            else {}
        )
        models = [each for each in (model, *steps) if (each / CONFIG).is_file()]
        known = manifest.read(model / str(target))
        for step in models[1:]:
            if (step / str(target)).exists():
                continue
            kept = model / str(target) / f"{step.name}.pbtxt"
            if not kept.is_file():  # the version was exported without this model; else, killed in between
                write(kept, steps[step](known, step.name, target, before))
            (step / str(target)).symlink_to(f"../{model.name}/{target}")
            sync_path(step)
        configs = {each: _configuration(each, target) for each in models}
        for each, config in configs.items():
            switch(each, config)
    return Switched(tuple(each.name for each in models), before, target)


def _target(model: Path, to: int | None) -> int:
    there = versions(model)
    listed = f"{model} has {', '.join(map(str, there)) or 'none'}; choose one with --to"
    target = served_before(model) if to is None else to
    if target is None:
        raise UsageError(f"no version was served before the present one; {listed}")
    if target not in there:
        raise RepositoryError(f"version {target} is not there; {listed}")
    return target


def _configuration(model: Path, version: int) -> bytes:
    """What config.pbtxt was when that version was served."""
    path = configuration(model, version)
    if not path.is_file():
        raise RepositoryError(
            f"{path} is missing: version {version} was written by an older gptport; export the model again"
        )
    if list(parse(path).version_policy.specific.versions) != [version]:
        raise RepositoryError(f"{path} is not the configuration of version {version}; export the model again")
    return path.read_bytes()
