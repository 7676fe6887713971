"""Tensors of a checkpoint that its graph does not read: known to be without effect, or a reason to stop."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from .errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from transformers import PreTrainedModel

    from .checkpoint import Checkpoint

_MASKS = re.compile(r"\.(bias|masked_bias|causal_mask)$")
_OLD = (r"\.inv_freq$", r"\.(cos|sin)_cached$", r"(^|\.)position_ids$", r"(^|\.)version$")
"""What a model makes itself: rotary angles, positions; and fairseq's version."""
_MOST_NAMES = 3
_LAYER = re.compile(r"\.(\d+)\.")


def unread(checkpoint: Checkpoint, read: Iterable[str]) -> str:
    """What a checkpoint has beside the parameters `read`, in words; empty if that is nothing.

    Raises:
        CheckpointError: some of it belongs to the model, by its name, and the architecture has no use for it: what the graph
            computes would not be what these weights were trained for.
    """
    if checkpoint.format == "gguf":
        return _unread_gguf(checkpoint)
    parameters = set(read)
    taken = {stored for name in parameters for stored in checkpoint.sources(name)}
    found: dict[str, list[str]] = defaultdict(list)
    unknown: list[str] = []
    for stored in sorted(checkpoint.naming.stored - taken):
        kind = _kind(checkpoint, stored, parameters)
        (unknown if kind is None else found[kind]).append(stored)
    if unknown:
        _refuse(checkpoint, unknown)
    return "; ".join(f"{len(names)} {kind} ({_listed(names)})" for kind, names in found.items())


def _unread_gguf(checkpoint: Checkpoint) -> str:
    """transformers reads the file, and passes over what it has no name for."""
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    reader = GGUFReader(checkpoint.files[0])
    architecture = reader.fields["general.architecture"].contents()
    processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    known = get_gguf_hf_weights_map(checkpoint.naming.model, processor(config={}))
    unknown = [
        each
        for each in reader.tensors
        if each.name not in known and "_exps" not in each.name  # experts are joined from theirs by name
    ]
    # Factors by which rotary frequencies are divided change nothing where they are 1.
    harmless = [each.name for each in unknown if each.name == "rope_freqs.weight" and (each.data == 1).all()]
    wrong = sorted(each.name for each in unknown if each.name not in harmless)
    if wrong:
        _refuse(checkpoint, wrong)
    return f"{len(harmless)} of ones ({_listed(harmless)})" if harmless else ""


def _kind(checkpoint: Checkpoint, stored: str, read: Collection[str]) -> str | None:
    """Why a tensor has no effect; None if that is not known."""
    naming = checkpoint.naming
    name = naming.parameter(stored)
    if name is not None:
        same = next((each for each in naming.parameters[name] if each in read), None)
        if same is not None:
            _check_same(checkpoint, stored, same)
            return "copies"
        return "of other parts" if naming.is_part else "that the model has and does not use"
    if any(re.search(pattern, stored) for pattern in _ignored(naming.model)):
        return "that transformers ignores"
    if _MASKS.search(stored) and _is_mask(checkpoint.stored_shape(stored)):
        return "causal masks"
    if stored.endswith(".bias") and not bool(checkpoint.stored_tensor(stored).any()):
        return "biases of zeros"
    if stored.split(".")[0] not in _beginnings(naming.model):
        return "of other parts"
    return None


def _check_same(checkpoint: Checkpoint, stored: str, read: str) -> None:
    """A second tensor for a parameter must be the first's copy."""
    pair = (checkpoint.stored_tensor(stored), checkpoint.tensor(read))
    first, second = pair if pair[0].dtype == pair[1].dtype else (each.float() for each in pair)
    if not torch.equal(first, second):
        raise CheckpointError(
            f"{checkpoint.name} has {stored} and {read} with different values, which are one parameter by its configuration; "
            "set tie_word_embeddings to false in its config.json if both are meant"
            if checkpoint.naming.parameter(stored) != read
            else f"{checkpoint.name} has two tensors for {read}, with different values; remove the wrong one"
        )


def _ignored(model: PreTrainedModel) -> list[str]:
    """Patterns of what transformers passes over when it loads the model, and of what its older versions stored."""
    return [*(model._keys_to_ignore_on_load_unexpected or ()), *_OLD]


def _is_mask(shape: tuple[int, ...]) -> bool:
    """One number, or [.., n, n] for one head."""
    return not shape or (len(shape) > 1 and shape[-1] == shape[-2] and set(shape[:-2]) <= {1})


def _beginnings(model: PreTrainedModel) -> set[str]:
    """What the name of a parameter begins with, with and without the base model's prefix."""
    return {name for name, _ in (*model.named_children(), *model.base_model.named_children())} | {
        model.base_model_prefix
    }


def _refuse(checkpoint: Checkpoint, unknown: list[str]) -> None:
    layers = checkpoint.spec.layers
    numbers = [int(found[1]) for name in unknown if (found := _LAYER.search(name))]
    hint = (
        f"its config.json says num_hidden_layers = {layers}"
        if numbers and min(numbers) >= layers
        else "its config.json may name the wrong architecture"
    )
    raise CheckpointError(
        f"{checkpoint.name} has {_listed(unknown)}, which {type(checkpoint.naming.model).__name__} does not read: it would "
        f"compute something else than what was trained; {hint}"
    )


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
