"""Tokens that a checkpoint names beside its tokenizer.json: transformers adds them when it loads the tokenizer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, first_line

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer

CONFIG = "tokenizer_config.json"
_SPECIAL, _ADDED = "special_tokens_map.json", "added_tokens.json"


def is_whole(directory: Path, tokenizer: Tokenizer) -> bool:
    """Whether tokenizer.json and tokenizer_config.json have all that the other files of a tokenizer name.

    As to transformers, those are older files: where tokenizer_config.json has an added_tokens_decoder they are not read,
    elsewhere what special_tokens_map.json says of a role goes before what tokenizer_config.json does.

    Raises:
        CheckpointError: one of the files is no JSON object.
    """
    config, special, added = (_read(directory / name) for name in (CONFIG, _SPECIAL, _ADDED))
    if "added_tokens_decoder" in config:
        special, added = {}, {}
    roles = {name: value for name, value in special.items() if name.endswith("_token")}
    listed = (
        config.get("added_tokens_decoder", {}).values(),
        roles.values(),
        special.get("additional_special_tokens", ()),
        added,
    )
    texts = {_text(token) for tokens in listed for token in tokens if token}
    alike = all(name in config and _text(config[name]) == _text(value) for name, value in roles.items())
    return alike and all(tokenizer.token_to_id(text) is not None for text in texts)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}; fetch it again") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object; fetch it again")
    return found
