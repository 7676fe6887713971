"""What the checkpoint says in torch, float32, without a cache: what the written graph is compared with."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from .errors import CheckpointError, UnsupportedModel, UsageError, first_line
from .scratch import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from .checkpoint import Checkpoint

ROWS, ROW_TOKENS = 4, 65  # the last token of a row has no successor: 256 predictions in all
WATCHED_ROW, WATCHED_TOKENS = 1, 21  # the hidden states that are kept: of the beginning of one row
_WHOLE = 1 << 30  # bytes of a model in float32 up to which it is loaded at once


@dataclass(frozen=True)
class Reference:
    """What the checkpoint says.

    Attributes:
        ids: rows of consecutive text, int64 [rows, tokens].
        logits: float32 [rows, tokens, vocab].
        hidden_states: after each layer, of what is watched: float32 [layers, tokens, features]; no layers unless asked for.
    """

    ids: NDArray[np.int64]
    logits: NDArray[np.float32]
    hidden_states: NDArray[np.float32]


def evaluation_text(path: Path | None) -> str:
    """The text in a file; without one, the beginning of Lewis Carroll's Alice's Adventures in Wonderland (1865, public domain).

    Raises:
        UsageError: the file cannot be read, or has no text.
    """
    if path is None:
        return resources.files(__package__).joinpath("text.txt").read_text(encoding="utf-8")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if not text.strip():
        raise UsageError(
            f"{path} has no text; give a text of some hundred words, such as the model is meant for"
        )
    return text


def reference(
    checkpoint: Checkpoint,
    tokenizer_json: bytes,
    max_length: int,
    text: str,
    layers_path: str | None = None,
    adapt: Callable[[PreTrainedModel], None] = lambda _: None,
) -> Reference:
    """Run the checkpoint in torch, changed by `adapt`, on the beginning of a text, in rows of consecutive tokens.

    `layers_path` names the list of decoder layers, if their hidden states are wanted.
    """
    ids = beginning(tokenizer_json, text, checkpoint.spec.vocab_size, max_length)
    model = in_torch(checkpoint, whole=True)
    adapt(model)
    states: list[NDArray[np.float32]] = []
    path = layers_path and checkpoint.naming.whole_name(layers_path)
    for layer in model.get_submodule(path).children() if path else ():
        layer.register_forward_hook(lambda _, __, output: states.append(_watched(output)))
    with torch.no_grad(), _named(checkpoint):
        logits = model(**_inputs(checkpoint, model, ids), use_cache=False).logits.float().numpy()
    return Reference(ids, logits, np.stack(states) if states else np.zeros((0, ids.shape[1], 0), np.float32))


def beginning(tokenizer_json: bytes, text: str, vocab_size: int, max_length: int) -> NDArray[np.int64]:
    """The beginning of a text in rows of consecutive tokens, int64 [rows, tokens]."""
    found = Tokenizer.from_str(tokenizer_json.decode()).encode(text, add_special_tokens=False).ids
    known = np.array([i for i in found if i < vocab_size] or [0], np.int64)
    return np.resize(known, (ROWS, min(ROW_TOKENS, max_length)))


def _watched(output: Any) -> NDArray[np.float32]:
    """Of what a decoder layer gives: hidden states, or a tuple that begins with them. A copy, which lets the rest go."""
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    kept: NDArray[np.float32] = hidden[WATCHED_ROW, :WATCHED_TOKENS].float().numpy().copy()
    return kept


def _inputs(
    checkpoint: Checkpoint, model: PreTrainedModel, ids: NDArray[np.int64]
) -> dict[str, torch.Tensor]:
    """What a model is given for text; one that tells images from text, also that all of it is text."""
    given = {"input_ids": torch.from_numpy(ids)}
    if checkpoint.naming.is_part and "token_type_ids" in inspect.signature(model.forward).parameters:
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    return given


@contextmanager
def _named(checkpoint: Checkpoint) -> Iterator[None]:
    """Say of an error of a model that takes more than text where it comes from: it may not do without the rest."""
    try:
        yield
    except Exception as error:
        if not checkpoint.naming.is_part:
            raise
        raise UnsupportedModel(
            f"{type(checkpoint.naming.model).__name__} does not run on text alone: {first_line(error)}"
        ) from error


def in_torch(checkpoint: Checkpoint, *, whole: bool = False) -> PreTrainedModel:
    """The model in torch, float32. One that is large, or in integers, or in files that transformers does not look for, reads the
    weights of a module each time it runs.

    Of a checkpoint for more than text it is the decoder of text alone, or `whole`, all that the checkpoint has.
    """
    large = checkpoint.format == "safetensors" and 4 * checkpoint.parameters > _WHOLE
    named_otherwise = checkpoint.format == "safetensors" and not any(
        (checkpoint.directory / f"model.safetensors{index}").is_file() for index in ("", ".index.json")
    )
    alone = checkpoint.naming.is_part and not whole
    if large or named_otherwise or checkpoint.packing or alone:
        model = _streamed(checkpoint, checkpoint.config if alone else checkpoint.whole_config)
    else:
        model = _loaded(checkpoint)
    model.eval()
    return model


def _architecture(checkpoint: Checkpoint) -> Any:
    """What makes the model: a class, for all of a checkpoint that has more than text."""
    return type(checkpoint.naming.model) if checkpoint.naming.is_part else AutoModelForCausalLM


def _loaded(checkpoint: Checkpoint) -> PreTrainedModel:
    """The model as transformers loads it; from GGUF, with the weights that transformers read already."""
    architecture = _architecture(checkpoint)
    settings = {"dtype": torch.float32, "attn_implementation": "eager"}
    if checkpoint.format == "gguf":
        model: PreTrainedModel = architecture.from_config(checkpoint.config, **settings)
        model.load_state_dict(checkpoint.state_dict, assign=True)
        return model
    if not checkpoint.naming.is_part:
        settings["trust_remote_code"] = checkpoint.trust_remote_code
    try:
        model = architecture.from_pretrained(
            checkpoint.directory, use_safetensors=checkpoint.format == "safetensors", **settings
        )
    except Exception as error:  # it raises whatever it comes across
        raise CheckpointError(
            f"transformers cannot load {checkpoint.directory}: {first_line(error)}"
        ) from error
    return model


def _streamed(checkpoint: Checkpoint, config: PretrainedConfig) -> PreTrainedModel:
    """The model without its weights: each module reads its own before it runs, and forgets them after."""
    from accelerate import init_empty_weights

    part = config is not checkpoint.whole_config
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    with init_empty_weights(include_buffers=False):
        if checkpoint.naming.is_part and not part:
            model: PreTrainedModel = _architecture(checkpoint)._from_config(config, **settings)
        else:
            architecture: Any = AutoModelForCausalLM
            model = architecture.from_config(
                config, trust_remote_code=checkpoint.trust_remote_code, **settings
            )
    model.tie_weights()
    name = (lambda each: each) if part else checkpoint.naming.name
    aliases = {own: tuple(map(name, others)) for own, others in _aliases(model).items()}
    for own in model.state_dict().keys() & dict(model.named_buffers()).keys():
        if name(own) in checkpoint:
            model.get_buffer(own).copy_(checkpoint.tensor(name(own)))
    streams = _Streams(checkpoint, aliases)
    for path, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(partial(streams.fill, f"{path}."))
            module.register_forward_hook(streams.empty, always_call=True)
    return model


class _Streams:
    """Hooks that read the weights of a module from the checkpoint, and let them go."""

    def __init__(self, checkpoint: Checkpoint, aliases: dict[str, tuple[str, ...]]) -> None:
        self._checkpoint = checkpoint
        self._aliases = aliases
        self._scratch = Scratch()

    def fill(self, prefix: str, module: nn.Module, _: Any) -> None:
        """Give a module its weights, float32."""
        # What these give does not lie in the memory of their weights, and while one runs no other does.
        alone = isinstance(module, nn.Linear | nn.Embedding | Conv1D)
        for name, parameter in list(module.named_parameters(recurse=False)):
            stored = next(each for each in self._aliases[prefix + name] if each in self._checkpoint)
            values = self._checkpoint.tensor(stored)
            memory = (
                self._scratch.tensor(name, parameter.shape, torch.float32)
                if alone
                else torch.empty(parameter.shape)
            )
            module._parameters[name] = nn.Parameter(memory.copy_(values), requires_grad=False)

    def empty(self, module: nn.Module, *_: Any) -> None:
        """Take them away again."""
        for name, parameter in list(module.named_parameters(recurse=False)):
            module._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def _aliases(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Parameter → its names, itself the first: a checkpoint has a tied parameter under one of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {
        name: (name, *(each for each in group if each != name)) for group in names.values() for name in group
    }
