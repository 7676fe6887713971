"""Find a checkpoint: which files it consists of, fetched from the hub if need be.

Nothing here imports torch, so that a wrong argument is answered at once.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError, first_line

if TYPE_CHECKING:
    import argparse

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_CODE = "*.py"
_POINTER = b"version https://git-lfs."  # how the file begins that git has in place of a large one
_PICKLES = "pytorch_model*.bin"


@dataclass(frozen=True)
class Location:
    """The files of a checkpoint.

    Attributes:
        name: what the user called it, without the folders before it.
        directory: where it is.
        format: `safetensors`, `gguf` or `pickle`; `onnx` for a graph that another exporter wrote.
        files: the files with weights.
        sha256: of the configuration and the weights; computed in the background, beside what is done meanwhile.
    """

    name: str
    directory: Path
    format: str
    files: tuple[Path, ...]
    sha256: Future[str] = field(compare=False, repr=False)


def locate(source: str, *, allow_pickle: bool = False, trust_remote_code: bool = False) -> Location:
    """Find a checkpoint, fetching it from the hub if `source` is a hub id.

    Args:
        source: a directory, or a hub id such as `openai-community/gpt2`.
        allow_pickle: take pickled weights, which can run any code that their author wrote, where there is nothing else.
        trust_remote_code: fetch its Python code too; nothing here runs it.

    Raises:
        CheckpointError: it is not there, or not a checkpoint.
    """
    directory = Path(source)
    if directory.is_file():
        raise CheckpointError(f"{source} is a file; give the directory that it is in")
    if not directory.is_dir():
        directory = _download(source, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    format_, files = _weights(directory, allow_pickle=allow_pickle)
    for path in files:
        _check_fetched(path)
    config = directory / "config.json"
    if format_ != "gguf" and not config.is_file():
        raise CheckpointError(
            f"{source} has no config.json; a Hugging Face checkpoint has one beside its weights"
        )
    name = directory.resolve().name if Path(source).is_dir() else source.rsplit("/", 1)[-1]
    return Location(name, directory, format_, files, hashing([p for p in (config, *files) if p.is_file()]))


def asked_for(options: argparse.Namespace) -> Location:
    """`locate` the checkpoint of a command line, as its options allow."""
    return locate(
        options.checkpoint, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code
    )


def _check_fetched(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(
                f"{path} is a pointer of Git LFS instead of the weights; fetch them there with: git lfs pull"
            )


def hashing(paths: list[Path]) -> Future[str]:
    """The hash of files, computed in the background."""
    background = ThreadPoolExecutor(1)
    sha256 = background.submit(_hash, paths)
    background.shutdown(wait=False)
    return sha256


def _hash(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _weights(directory: Path, *, allow_pickle: bool) -> tuple[str, tuple[Path, ...]]:
    for format_, pattern in (
        ("safetensors", "*.safetensors"),
        ("gguf", "*.gguf"),
        ("pickle", _PICKLES),
    ):
        files = tuple(sorted(directory.glob(pattern)))
        if format_ == "safetensors" and files:
            return format_, _indexed(directory, files, "model.safetensors")
        if format_ == "gguf" and len(files) > 1:
            raise CheckpointError(
                f"{directory} has {len(files)} GGUF files; keep the one to export in a directory of its own"
            )
        if files and format_ == "pickle" and not allow_pickle:
            raise _only_pickled(str(directory), files[0].name)
        if files and format_ == "pickle":
            return format_, _indexed(directory, files, "pytorch_model.bin")
        if files:
            return format_, files
    raise CheckpointError(f"{directory} is not a checkpoint: it has no *.safetensors and no *.gguf file")


def _only_pickled(source: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"{source} has its weights only as a pickle ({name}), which can run any code when it is read; "
        "convert it to safetensors, or pass --allow-pickle if you trust its author"
    )


def _indexed(directory: Path, files: tuple[Path, ...], single: str) -> tuple[Path, ...]:
    """The file `single`, which transformers takes too if it is there; else the shards that its index names, or all files."""
    index = directory / f"{single}.index.json"
    if directory / single in files:
        return (directory / single,)
    if not index.is_file():
        return files
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged: {error}; fetch it again") from error
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(shards)} shards, the first is {missing[0]}; fetch it again"
        )
    return tuple(directory / shard for shard in shards)


def _download(source: str, *, allow_pickle: bool, trust_remote_code: bool) -> Path:
    if not _HUB_ID.fullmatch(source) or source.startswith((".", "/")):
        raise CheckpointError(f"{source} is not a directory")
    from huggingface_hub import list_repo_files, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        wanted = [*_WANTED, _CODE] if trust_remote_code else _WANTED
        directory = Path(snapshot_download(source, allow_patterns=wanted))
        safe = any(directory.glob("*.safetensors"))
        if allow_pickle and not safe:
            snapshot_download(source, allow_patterns=_PICKLES)
        if safe or any(directory.glob(_PICKLES)):  # then the hub, which may be out of reach, is not asked
            return directory
        there = list_repo_files(source)
        if pickles := fnmatch.filter(there, _PICKLES):
            raise _only_pickled(source, min(pickles))
        if ggufs := fnmatch.filter(there, "*.gguf"):
            raise CheckpointError(
                f"{source} has its weights only as GGUF ({min(ggufs)}); fetch one such file into a directory of its own, "
                "and give that"
            )
        return directory
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{source} is neither a directory nor a model on the hub that you may read"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{source} is not a directory, and the hub cannot be reached: {first_line(error)}"
        ) from error
