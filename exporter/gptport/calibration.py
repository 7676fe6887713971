"""What GPTQ needs to know of a model: how the inputs of its matrices vary on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers.pytorch_utils import Conv1D

from . import reference
from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from .checkpoint import Checkpoint

_ROWS, _ROW_TOKENS = 8, 128


def hessians(
    checkpoint: Checkpoint, tokenizer_json: bytes, max_length: int, text: str
) -> Mapping[str, torch.Tensor]:
    """Weight → the sum of xᵀ·x over its inputs x, float32 [K, K], on the end of a text, whose beginning is for evaluation.

    Raises:
        UsageError: they do not fit into memory.
    """
    found = Tokenizer.from_str(tokenizer_json.decode()).encode(text, add_special_tokens=False).ids
    known = [i for i in found if i < checkpoint.spec.vocab_size][reference.ROWS * reference.ROW_TOKENS :]
    ids = np.resize(np.array(known or [0], np.int64), (_ROWS, min(_ROW_TOKENS, max_length)))
    model = reference.in_torch(checkpoint)
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
    _check_memory(linears)
    collected = _Sums()
    hooks = [module.register_forward_pre_hook(collected.hook(name)) for name, module in linears.items()]
    with torch.no_grad():
        model(torch.from_numpy(ids), use_cache=False)
    for hook in hooks:
        hook.remove()
    return collected.sums


class _Sums:
    """One sum for each input, which several matrices may share."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def hook(self, name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        """A hook that adds the input of a module."""

        def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self._last is None or self._last[0] is not inputs[0]:
                rows = inputs[0].flatten(0, -2)
                self._last = inputs[0], rows.T @ rows
            self.sums[name] = self._last[1]

        return add


def _check_memory(linears: Mapping[str, nn.Linear | Conv1D]) -> None:
    import psutil

    widths = [
        module.weight.shape[1 if isinstance(module, torch.nn.Linear) else 0]
        for module in set(linears.values())
    ]
    needed, free = 4 * sum(width * width for width in widths), psutil.virtual_memory().available
    if needed > free:
        raise UsageError(
            f"gptq needs up to {needed:,} bytes of memory for this model, and {free:,} are free; "
            "take k_quant, or a larger machine"
        )
