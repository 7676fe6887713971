"""The files of a checkpoint's tokenizer, as they stand beside an exported model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from . import named_tokens
from .errors import CheckpointError, first_line

if TYPE_CHECKING:
    from .locate import Location

GENERATION = "generation_config.json"
_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAMES = ("tokenizer.json", _CONFIG, _TEMPLATE, GENERATION)
_SENTENCEPIECE = b"\n"  # how the file of such a model begins; one of tiktoken's is text


def read(location: Location, *, trust_remote_code: bool) -> dict[str, bytes]:
    """Name → content of the tokenizer's files and of generation_config.json; `tokenizer.json` is always there.

    Raises:
        CheckpointError: there is no tokenizer that can be written as tokenizer.json, or its template is no text.
    """
    directory = location.directory
    files = _files(directory)
    if "tokenizer.json" not in files:
        files = {**_converted(location, trust_remote_code=trust_remote_code), **files}
    elif not named_tokens.is_whole(
        directory, _tokenizer(directory, files["tokenizer.json"])
    ) or _asks_for_defaults(files):
        files = {**files, **_converted(location, trust_remote_code=trust_remote_code)}
    if not _tokenizer(directory, files["tokenizer.json"]).get_vocab_size(with_added_tokens=False):
        raise _none(directory)
    return files


def _files(directory: Path) -> dict[str, bytes]:
    """Those that are there. Several templates are put together in tokenizer_config.json, where older checkpoints have them."""
    files = {name: (directory / name).read_bytes() for name in _NAMES if (directory / name).is_file()}
    templates = {path.stem: _text(path) for path in sorted((directory / _MORE_TEMPLATES).glob("*.jinja"))}
    if _TEMPLATE in files:
        templates = {"default": _text(directory / _TEMPLATE), **templates}
    if templates.keys() <= {"default"}:
        return files
    config = json.loads(files.get(_CONFIG, b"{}"))
    config["chat_template"] = [{"name": name, "template": template} for name, template in templates.items()]
    files.pop(_TEMPLATE, None)
    return {**files, _CONFIG: json.dumps(config, ensure_ascii=False, indent=2).encode()}


def _asks_for_defaults(files: dict[str, bytes]) -> bool:
    """Whether a chat template reads a special token that tokenizer_config.json leaves to the tokenizer's class."""
    config = json.loads(files.get(_CONFIG, b"{}"))
    templates = f"{files.get(_TEMPLATE, b'').decode()}{config.get('chat_template')}"
    return any(role in templates and role not in config for role in _ROLES)


def _text(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{template} is no UTF-8: {error}; fetch it again, or convert it") from error


def _converted(location: Location, *, trust_remote_code: bool) -> dict[str, bytes]:
    """The files of a tokenizer that is stored in an older way, or inside a GGUF file."""
    from transformers import AutoTokenizer

    gguf = {"gguf_file": location.files[0].name} if location.format == "gguf" else {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            AutoTokenizer.from_pretrained(
                location.directory, trust_remote_code=trust_remote_code, **gguf
            ).save_pretrained(folder)
            return _files(Path(folder))
        except Exception as error:
            raise _conversion_error(location.directory, error) from error


def _conversion_error(directory: Path, error: Exception) -> CheckpointError:
    text = first_line(error)
    if "instantiate the backend tokenizer" in text:  # of no file
        return _none(directory)
    if "tiktoken" in text:  # what transformers takes for its format where it cannot read sentencepiece's
        for model in directory.glob("*.model"):
            if model.read_bytes().startswith(_SENTENCEPIECE):
                return CheckpointError(
                    f"{directory} has no tokenizer.json, and sentencepiece, which reads {model.name}, is not installed: "
                    "pip install 'gptport[export]', or put a tokenizer.json there"
                )
    return CheckpointError(f"{directory} has no tokenizer: {text}; put its tokenizer.json there")


def _none(directory: Path) -> CheckpointError:
    return CheckpointError(f"{directory} has no tokenizer; put its tokenizer.json there")


def _tokenizer(directory: Path, tokenizer_json: bytes) -> Tokenizer:
    """What tokenizer.json has; no vocabulary where transformers made it of no files."""
    try:
        return Tokenizer.from_str(tokenizer_json.decode())
    except Exception as error:  # the library raises nothing more particular
        raise CheckpointError(f"{directory}/tokenizer.json cannot be read: {first_line(error)}") from error
