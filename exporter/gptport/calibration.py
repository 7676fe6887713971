"""What GPTQ and SmoothQuant need to know of a model: the inputs of its matrices on a text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers.pytorch_utils import Conv1D

from . import reference
from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn
    from transformers import PreTrainedModel

    from .checkpoint import Checkpoint

ALGORITHMS = ("gptq", "smoothquant")
"""What needs it."""
_ROWS, _ROW_TOKENS = 8, 128
_KEPT = 128  # inputs of a matrix, of all positions

T = TypeVar("T")


@dataclass(frozen=True)
class Inputs:
    """Inputs of a matrix.

    Attributes:
        largest: absolute value of each feature, float32 [K].
        some: of the inputs, evenly over the text, float32 [inputs, K].
    """

    largest: torch.Tensor
    some: torch.Tensor

    @classmethod
    def of(cls, rows: torch.Tensor) -> Inputs:
        """What is kept of all inputs [positions, K]."""
        return cls(rows.abs().amax(0), rows[:: max(1, len(rows) // _KEPT)].clone())


@dataclass(frozen=True)
class Calibration:
    """What is known of the matrices, by the names of their parameters; of what the algorithm has no use for, nothing.

    Attributes:
        hessians: for gptq, the sum of xᵀ·x over the inputs x, float32 [K, K].
        inputs: for smoothquant.
    """

    hessians: Mapping[str, torch.Tensor] = field(default_factory=dict)
    inputs: Mapping[str, Inputs] = field(default_factory=dict)


def calibrated(
    checkpoint: Checkpoint, tokenizer_json: bytes, max_length: int, text: str, algorithm: str
) -> Calibration:
    """What an algorithm needs, from the end of a text, whose beginning is for evaluation.

    Raises:
        UsageError: it does not fit into memory.
    """
    ids = _end(checkpoint, tokenizer_json, max_length, text)
    model = reference.in_torch(checkpoint)
    linears = _linears(model)
    if algorithm == "gptq":
        _check_memory(linears, lambda width: width * width, "gptq", "k_quant")
        return Calibration(hessians=_collected(model, linears, ids, lambda rows: rows.T @ rows))
    _check_memory(linears, lambda width: (_KEPT + 1) * width, "smoothquant", "rtn")
    return Calibration(inputs=_collected(model, linears, ids, Inputs.of))


def _end(checkpoint: Checkpoint, tokenizer_json: bytes, max_length: int, text: str) -> torch.Tensor:
    found = Tokenizer.from_str(tokenizer_json.decode()).encode(text, add_special_tokens=False).ids
    known = [i for i in found if i < checkpoint.spec.vocab_size][reference.ROWS * reference.ROW_TOKENS :]
    return torch.from_numpy(
        np.resize(np.array(known or [0], np.int64), (_ROWS, min(_ROW_TOKENS, max_length)))
    )


def _linears(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Parameter → what multiplies with it."""
    linears = {
        f"{name}.weight": module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    if isinstance(
        head := model.get_output_embeddings(), torch.nn.Linear
    ):  # known by the embedding's name if tied to it
        parameters = model.named_parameters(remove_duplicate=False)
        linears.update((name, head) for name, parameter in parameters if parameter is head.weight)
    return linears


def _collected(
    model: PreTrainedModel,
    linears: Mapping[str, nn.Linear | Conv1D],
    ids: torch.Tensor,
    make: Callable[[torch.Tensor], T],
) -> dict[str, T]:
    """What `make` makes of all inputs [positions, K] of each matrix."""
    collected = _Collected(make)
    hooks = [module.register_forward_pre_hook(collected.hook(name)) for name, module in linears.items()]
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return collected.found


class _Collected(Generic[T]):
    """One thing for each input, which several matrices may share."""

    def __init__(self, make: Callable[[torch.Tensor], T]) -> None:
        self.found: dict[str, T] = {}
        self._make = make
        self._last: tuple[torch.Tensor, T] | None = None

    def hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        """A hook that takes the input of a module."""

        def take(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self._last is None or self._last[0] is not inputs[0]:
                self._last = inputs[0], self._make(inputs[0].flatten(0, -2))
            self.found[name] = self._last[1]

        return take


def _check_memory(
    linears: Mapping[str, nn.Linear | Conv1D], numbers: Callable[[int], int], algorithm: str, other: str
) -> None:
    import psutil

    widths = [
        module.weight.shape[1 if isinstance(module, torch.nn.Linear) else 0]
        for module in set(linears.values())
    ]
    needed, free = 4 * sum(map(numbers, widths)), psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"{algorithm} needs up to {needed:,} bytes of memory for this model, and {free:,} are free; "
            f"take {other}, or a larger machine"
        )
