"""Parameters that a checkpoint stores in pieces, such as each expert by itself, joined as transformers does."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Converted:
    """A parameter that is made of stored ones.

    Attributes:
        name: of the parameter.
        pieces: pattern of transformers' converter → the stored names that match it, in order.
        converter: that converter.
        config: the model's.
    """

    name: str
    pieces: dict[str, list[str]]
    converter: Any
    config: Any

    def make(self, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """The parameter, of stored tensors as `read` gives them by name; on the meta device too."""
        tensors: Any = {
            pattern: [read(name) for name in names]
            for pattern in self.converter.source_patterns
            if (names := self.pieces.get(pattern))
        }
        for operation in self.converter.operations:
            tensors = operation.convert(
                tensors,
                source_patterns=self.converter.source_patterns,
                target_patterns=self.converter.target_patterns,
                full_layer_name=self.name,
                model=None,
                config=self.config,
                missing_keys=None,
            )
        made: torch.Tensor = next(value for pattern, value in tensors.items() if pattern in self.name)
        return made


def converted(model: PreTrainedModel, stored: Iterable[str]) -> dict[str, Converted]:
    """Parameter → how it is made of stored ones, for those that are."""
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    pieces: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters)
        if pattern is not None:
            pieces[target][pattern].append(name)
    return {
        target: Converted(
            target, found, next(c for c in converters if set(found) <= set(c.source_patterns)), model.config
        )
        for target, found in pieces.items()
    }
