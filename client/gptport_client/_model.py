"""A model's name, and what its configuration tells a client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from gptport_client._errors import InvalidRequest, ProtocolError

SCHEMA = "1"
Kind: TypeAlias = Literal["text", "step"]


@dataclass(frozen=True)
class ModelInfo:
    """A model in the server's repository.

    Attributes:
        name: its name.
        version: the version that is served.
        ready: whether it takes requests.
        reason: why not, if the server says.
    """

    name: str
    version: str
    ready: bool
    reason: str


@dataclass(frozen=True)
class ModelConfig:
    """What the configuration of an exported model says.

    Attributes:
        name: the model's name on the server.
        kind: `text` (text in, text out) or `step` (ids in, logits out).
        max_length: most tokens of prompt and answer together.
        vocab_size: token ids are below this.
        eos_token_ids: each of them ends a text; may be empty.
        tokenizer_sha256: of the model's tokenizer.json; empty if it has none.
    """

    name: str
    kind: Kind
    max_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    tokenizer_sha256: str


def check_model_name(name: str) -> None:
    """Raise InvalidRequest unless `name` can be a model's: no separators, no `..`, nothing unprintable."""
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"model is {name!r}; give the name of a model on the server")
    if ".." in name or re.search(r"[/\\\s]", name) or not name.isprintable():
        raise InvalidRequest(f"model is {name!r}; a model's name has no '/', no '..' and no spaces in it")


def step_model(name: str) -> str:
    """The name of the step model that belongs to the text model `name`."""
    return f"{name}_step"


def read_config(config: Any) -> ModelConfig:
    """Read Triton's `ModelConfig` message.

    Raises:
        ProtocolError: the model was not exported by gptport, or by one with another schema.
    """
    parameters = {key: value.string_value for key, value in config.parameters.items()}
    schema = parameters.get("gptport_schema")
    if schema != SCHEMA:
        found = "no gptport_schema" if schema is None else f"gptport_schema {schema!r}"
        raise ProtocolError(
            f"model {config.name!r} has {found} in its configuration, this client reads {SCHEMA!r}: export "
            "the model with a gptport that fits this client"
        )
    try:
        return ModelConfig(
            name=config.name,
            kind=_kind(parameters["gptport_kind"]),
            max_length=int(parameters["max_length"]),
            vocab_size=int(parameters["vocab_size"]),
            eos_token_ids=frozenset(
                int(token) for token in parameters["eos_token_ids"].split(",") if token.strip()
            ),
            tokenizer_sha256=parameters.get("tokenizer_sha256", ""),
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(
            f"model {config.name!r} has a wrong parameter in its configuration ({error!r}); export it again"
        ) from error


def _kind(name: str) -> Kind:
    if name not in ("text", "step"):
        raise ValueError(f"gptport_kind is {name!r}, not text or step")
    return cast("Kind", name)
