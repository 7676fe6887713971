"""A model's name, and what its configuration tells a client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from tritonclient.grpc import model_config_pb2 as pb

from gptport_client._errors import InvalidRequest, ProtocolError

SCHEMA = "1"
Kind: TypeAlias = Literal["text", "step", "kv", "growing"]

_ITEM_SIZES = {"FP32": 4, "FP16": 2, "BF16": 2}
# Beside the cache.
_INPUTS = (
    "input_ids",
    "position_ids",
    "seqlens_k",
    "attention_mask",
    "use_cache_branch",
    "num_logits_to_keep",
)


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
class CacheLayout:
    """The keys and values that a client holds of a sequence.

    Attributes:
        tensors: an input and the output that takes its place, for each layer's keys and each layer's values.
        datatype: of all of them, as Triton calls it.
        heads: their shape is `[1, heads, length, head_dim]`; the client chooses the length, or it is that of the tokens so far.
        head_dim: see `heads`.
        inputs: the model's others, by name.
        gpu: the number of the one that the model runs on; None if that is a CPU.
        in_cuda_memory: whether they are held in that GPU's memory; else each request copies them there and back.
    """

    tensors: tuple[tuple[str, str], ...]
    datatype: str
    heads: int
    head_dim: int
    inputs: tuple[str, ...]
    gpu: int | None = None
    in_cuda_memory: bool = False

    @property
    def width(self) -> int:
        """Bytes of a position in a row; a row is a head of a tensor."""
        return self.head_dim * _ITEM_SIZES[self.datatype]

    def bytes(self, length: int) -> int:
        """Of all tensors, at that length."""
        return len(self.tensors) * self.heads * length * self.width


@dataclass(frozen=True)
class ModelConfig:
    """What the configuration of an exported model says.

    Attributes:
        name: the model's name on the server.
        kind: `text` (text in, text out), or ids in, logits out: `step` (the server holds keys and values), `kv` (the client
            does, in memory that both share) or `growing` (the client does, and sends them with each request).
        max_length: most tokens of prompt and answer together.
        vocab_size: token ids are below this.
        eos_token_ids: each of them ends a text; may be empty.
        tokenizer_sha256: of the model's tokenizer.json; empty if it has none.
        cache: what the client holds of a sequence; None if it holds nothing.
    """

    name: str
    kind: Kind
    max_length: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    tokenizer_sha256: str
    cache: CacheLayout | None = None


def check_model_name(name: str) -> None:
    """Raise InvalidRequest unless `name` can be a model's: no separators, no `..`, nothing unprintable."""
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"model is {name!r}; give the name of a model on the server")
    if ".." in name or re.search(r"[/\\\s]", name) or not name.isprintable():
        raise InvalidRequest(f"model is {name!r}; a model's name has no '/', no '..' and no spaces in it")


def step_model(name: str) -> str:
    """The name of the step model that belongs to the text model `name`."""
    return f"{name}_step"


def kv_model(name: str) -> str:
    """The name of the step model without state that belongs to the text model `name`."""
    return f"{name}_kv"


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
            kind=(kind := _kind(parameters["gptport_kind"])),
            max_length=int(parameters["max_length"]),
            vocab_size=int(parameters["vocab_size"]),
            eos_token_ids=frozenset(
                int(token) for token in parameters["eos_token_ids"].split(",") if token.strip()
            ),
            tokenizer_sha256=parameters.get("tokenizer_sha256", ""),
            cache=_cache_layout(config) if kind in ("kv", "growing") else None,
        )
    except (KeyError, ValueError) as error:
        raise ProtocolError(
            f"model {config.name!r} has a wrong parameter in its configuration ({error!r}); export it again"
        ) from error


def _kind(name: str) -> Kind:
    if name not in ("text", "step", "kv", "growing"):
        raise ValueError(f"gptport_kind is {name!r}, not text, step, kv or growing")
    return cast("Kind", name)


def _cache_layout(config: Any) -> CacheLayout:
    """Of inputs and outputs in their order: the n-th cache input belongs to the n-th cache output."""
    pasts = [tensor for tensor in config.input if tensor.name not in _INPUTS]
    presents = [tensor for tensor in config.output if tensor.name != "logits"]
    shapes = {(tensor.data_type, *tensor.dims[-3:]) for tensor in (*pasts, *presents)}
    if len(pasts) != len(presents) or len(shapes) != 1:
        raise ValueError(f"{len(pasts)} cache inputs and {len(presents)} outputs of the shapes {shapes}")
    ((datatype, heads, length, head_dim),) = shapes
    if length != -1:
        raise ValueError(f"the length of the cache is fixed to {length}")
    name = pb.DataType.Name(datatype).removeprefix("TYPE_")
    if name not in _ITEM_SIZES:
        raise ValueError(f"the cache is {name}")
    names = tuple((past.name, present.name) for past, present in zip(pasts, presents, strict=True))
    inputs = tuple(tensor.name for tensor in config.input if tensor.name in _INPUTS)
    groups = [group for group in config.instance_group if group.kind == pb.ModelInstanceGroup.KIND_GPU]
    gpu = next(iter(groups[0].gpus), 0) if groups else None
    return CacheLayout(names, name, heads, head_dim, inputs, gpu)
