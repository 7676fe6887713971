"""A LoRA adapter on its way into a repository: read, laid out for the graph, compared with the checkpoint, put in place."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from . import manifest as manifests
from . import repository as repositories
from . import versions
from .adapters import DESCRIPTION, FOLDER, WEIGHTS
from .errors import RepositoryError, UsageError
from .lora import LowRank, inputs, read
from .manifest import File
from .recheck import allowed, check_source
from .reference import evaluation_text, reference
from .verify import Parity, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from .checkpoint import Checkpoint
    from .console import Steps
    from .manifest import Manifest

_FORMAT = 1  # of adapter.json
_STAGING = ".staging-"


def export(
    source: Path, model: Path, name: str, steps: Steps, checkpoint: Checkpoint | None = None
) -> tuple[Path, Parity | None]:
    """Put an adapter of PEFT's beside the version that a model serves, as onnxruntime's AdapterFormat.

    Args:
        source: the adapter's folder.
        model: of the repository, or one of its versions; exported with --lora.
        name: that requests give.
        steps: shows what is done.
        checkpoint: to compare with, run in torch with the adapter beside its modules; None to compare with nothing.

    Returns:
        Its folder, and how close the graph with it is to the checkpoint with it.

    Raises:
        GptportError: what is wrong; nothing was changed.
    """
    repositories.checked_name(name)
    folder = manifests.version_folder(model)
    known = manifests.read(folder)
    target = folder / FOLDER / name
    _check_free(target)
    adapter = read(source)
    matrices = inputs(adapter, known)
    parity = _compare(folder, known, checkpoint, adapter, matrices, steps) if checkpoint else None
    _publish(source, target, matrices, _description(adapter, parity))
    return target, parity


def beside(adapter: Mapping[str, LowRank]) -> Callable[[PreTrainedModel], None]:
    """What lets a model in torch compute with an adapter, whether its weights are there or are read when they are needed."""

    def adapt(model: PreTrainedModel) -> None:
        for path, piece in adapter.items():
            model.get_submodule(path).register_forward_hook(_added(piece))

    return adapt


def _added(piece: LowRank) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]:
    return lambda _, given, output: output + given[0] @ piece.down @ piece.up


def _check_free(target: Path) -> None:
    if target.exists():
        raise UsageError(
            f"there is an adapter {target.name!r} already: choose another --name, or remove {target}"
        )


def _compare(
    folder: Path,
    known: Manifest,
    checkpoint: Checkpoint,
    adapter: Mapping[str, LowRank],
    matrices: Mapping[str, NDArray[Any]],
    steps: Steps,
) -> Parity:
    check_source(folder, known, checkpoint)
    with steps.step("Running the checkpoint with the adapter in torch"):
        tokenizer = (folder / "tokenizer.json").read_bytes()
        expected = reference(
            checkpoint, tokenizer, known.max_length, evaluation_text(None), adapt=beside(adapter)
        )
    with steps.step("Comparing the graph with it"):
        return verify(folder, known, expected, allowed(known), optional=matrices)


def _description(adapter: Mapping[str, LowRank], parity: Parity | None) -> dict[str, Any]:
    return {
        "modules": len(adapter),
        "ranks": sorted({piece.down.shape[1] for piece in adapter.values()}),
        "verification": parity
        and {
            "tokens": parity.tokens,
            "max_abs_logit_difference": parity.max_abs_logit_difference,
            "greedy_agreement": parity.greedy_agreement,
        },
    }


def _publish(
    source: Path, target: Path, matrices: Mapping[str, NDArray[Any]], description: dict[str, Any]
) -> None:
    """Write the folder beside its place, then rename it: whoever looks finds it whole or not at all."""
    try:
        target.parent.mkdir(exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=_STAGING, dir=target.parent))
    except OSError as error:
        raise RepositoryError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        staged.chmod(0o755)  # as other folders are; tempfile makes one for its owner alone
        _write(staged / WEIGHTS, matrices)
        measured = File.of(staged / WEIGHTS)
        document = {
            "format": _FORMAT,
            "source": source.resolve().name,
            "bytes": measured.bytes,
            "sha256": measured.sha256,
            **description,
        }
        (staged / DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n")
        repositories.sync(staged)
        with repositories.locked(target.parent):
            _check_free(target)
            staged.replace(target)
        versions.sync_path(target.parent)
    except OSError as error:
        raise RepositoryError(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(path: Path, matrices: Mapping[str, NDArray[Any]]) -> None:
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(matrix) for name, matrix in matrices.items()
    }  # they must live until the file is written
    file = onnxruntime.AdapterFormat()
    file.set_adapter_version(1)
    file.set_model_version(1)
    file.set_parameters(values)
    file.export_adapter(str(path))
