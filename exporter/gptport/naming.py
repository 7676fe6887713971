"""Under which names a checkpoint stores a model's parameters: as they are, without the base model's prefix, or older ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from .converted import Converted, converted

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class Naming:
    """The names of stored tensors and those of the model's parameters.

    Attributes:
        stored: the names that the checkpoint has.
        config: of the model.
        trust_remote_code: whether Python code in the checkpoint may run.
    """

    stored: frozenset[str]
    config: PretrainedConfig
    trust_remote_code: bool

    def find(self, name: str) -> str | None:
        """The name under which a parameter is stored."""
        prefix = self._prefix
        for candidate in (name, name.removeprefix(prefix), prefix + name):
            if candidate in self.stored:
                return candidate
        return self._older.get(name)

    @cached_property
    def converted(self) -> dict[str, Converted]:
        """Parameter → how it is made of stored ones."""
        return converted(self.model, self.stored)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, without any memory."""
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                self.config, trust_remote_code=self.trust_remote_code
            )
        return model

    @cached_property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """Parameter or buffer of the model → the other names of the same values."""
        names: dict[int, list[str]] = {}
        for name, tensor in (
            *self.model.named_parameters(remove_duplicate=False),
            *self.model.named_buffers(),
        ):
            names.setdefault(id(tensor), []).append(name)
        return {name: tuple(group) for group in names.values() for name in group}

    def parameter(self, stored: str) -> str | None:
        """The parameter or buffer of the model that a stored tensor is, or is a piece of."""
        renamed = rename_source_key(stored, self._renamings, self._converters)[0]
        candidates = (renamed, renamed.removeprefix(self._prefix), self._prefix + renamed)
        return next((each for each in candidates if each in self.parameters), None)

    @cached_property
    def _older(self) -> dict[str, str]:
        """Parameter → stored name, by the renamings that transformers itself applies when it loads this architecture."""
        return {rename_source_key(stored, self._renamings, [])[0]: stored for stored in self.stored}

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
