"""Under which names a checkpoint stores a model's parameters: as they are, without the base model's prefix, or older ones.

Of a checkpoint for text and images or sound, the model is the decoder of text alone, whose parameters have other names there.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .converted import Converted, converted
from .errors import UnsupportedModel, first_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of the decoder of text, of a model that takes images or sound as well; of any other its own."""
    text = config.get_text_config(decoder=True)
    decoders: Any = AutoModelForCausalLM._model_mapping
    if (
        getattr(config, "is_encoder_decoder", False)
        or type(text) is type(config)
        or type(text) not in decoders
    ):
        return config
    part = copy.deepcopy(text)
    part.tie_word_embeddings = getattr(config, "tie_word_embeddings", part.tie_word_embeddings)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(part, name, None) is None:
            setattr(part, name, getattr(config, name, None))
    return part


@dataclass(frozen=True)
class Naming:
    """The names of stored tensors and those of the model's parameters.

    Attributes:
        stored: the names that the checkpoint has.
        config: of all that the checkpoint has.
        part: of the model; the same unless there is more than text.
        trust_remote_code: whether Python code in the checkpoint may run.
    """

    stored: frozenset[str]
    config: PretrainedConfig
    part: PretrainedConfig
    trust_remote_code: bool

    @property
    def is_part(self) -> bool:
        """Whether the checkpoint has more than the model."""
        return self.part is not self.config

    def find(self, name: str) -> str | None:
        """The name under which a parameter is stored."""
        if self.is_part:
            return self._older.get(name)
        prefix = self._prefix
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.stored:
                return candidate
        return self._older.get(name)

    @cached_property
    def converted(self) -> dict[str, Converted]:
        """Parameter → how it is made of stored ones."""
        return {self.name(name): each for name, each in converted(self.model, self.stored).items()}

    @cached_property
    def model(self) -> PreTrainedModel:
        """All that the checkpoint has, without any memory."""
        auto: Any = AutoModelForCausalLM
        if self.is_part and type(self.config) in AutoModelForImageTextToText._model_mapping:
            auto = AutoModelForImageTextToText
        elif not self.trust_remote_code and type(self.config) not in auto._model_mapping:
            raise UnsupportedModel(
                f"transformers has no causal language model for the configuration of {self.config.model_type!r} alone"
            )
        try:
            with torch.device("meta"):
                model: PreTrainedModel = auto.from_config(
                    self.config, trust_remote_code=self.trust_remote_code
                )
        except Exception as error:  # parts for images may want packages that are not there
            raise UnsupportedModel(
                f"transformers cannot make the model {self.config.model_type!r}: {first_line(error)}"
            ) from error
        return model

    def name(self, whole: str) -> str:
        """A parameter's name in the model, by that in all that the checkpoint has."""
        path, own = self._decoder
        return own + whole.removeprefix(path) if self.is_part and whole.startswith(path) else whole

    def whole_name(self, name: str) -> str:
        """The other way round; of modules too."""
        path, own = self._decoder
        return path + name.removeprefix(own) if self.is_part and name.startswith(own) else name

    @cached_property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """Parameter or buffer → all names of the same values, itself among them."""
        names: dict[int, list[str]] = {}
        for name, tensor in (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(),
        ):
            names.setdefault(id(tensor), []).append(self.name(name))
        return {name: tuple(group) for group in names.values() for name in group}

    def parameter(self, stored: str) -> str | None:
        """The parameter or buffer that a stored tensor is, or is a piece of."""
        renamed = rename_source_key(stored, self._renamings, self._converters)[0]
        candidates = (renamed, renamed.removeprefix(self._prefix), self._prefix + renamed)
        return next((name for each in candidates if (name := self.name(each)) in self.parameters), None)

    @cached_property
    def _older(self) -> dict[str, str]:
        """Parameter → stored name, by the renamings that transformers itself applies when it loads this architecture."""
        return {
            self.name(rename_source_key(stored, self._renamings, [])[0]): stored for stored in self.stored
        }

    @cached_property
    def _decoder(self) -> tuple[str, str]:
        """What the names of the decoder of text begin with in all that the checkpoint has, and in the model."""
        decoders: Any = AutoModelForCausalLM._model_mapping
        architecture = decoders[type(self.part)]
        decoder = self.model.get_decoder()
        path = next(path for path, module in self.model.named_modules() if module is decoder)
        return f"{path}.", "" if isinstance(decoder, architecture) else f"{architecture.base_model_prefix}."

    @cached_property
    def _mapping(self) -> list[Any]:
        return get_model_conversion_mapping(self.model)

    @property
    def _renamings(self) -> list[WeightRenaming]:
        return [each for each in self._mapping if isinstance(each, WeightRenaming)]

    @property
    def _converters(self) -> list[WeightConverter]:
        return [each for each in self._mapping if isinstance(each, WeightConverter)]

    @cached_property
    def _prefix(self) -> str:
        return f"{self.model.base_model_prefix}."
