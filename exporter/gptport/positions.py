"""Positions that a model counts itself: given a whole text it counts the tokens, in the graph it takes `position_ids`.

`torch.arange` of as many numbers as there are new tokens gives a `Counted` tensor: of the shape [S,…] that the model expects,
and the same for every row, while behind it stands [B,S,…], made of `position_ids`. What a model does to it is done to that,
until the rows have an axis of their own. Anything else is done to the numbers from 0, which no graph has, so that it is refused.

Others count from the padding id's number (RoBERTa), in a method `create_position_ids_from_input_ids`.
"""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from . import recording
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

METHOD = "create_position_ids_from_input_ids"

_ELEMENTWISE = {
    *("add", "__add__", "__radd__", "sub", "__sub__", "mul", "__mul__", "__rmul__", "div", "__truediv__"),
    *(
        "floor",
        "log1p",
        "float",
        "long",
        "int",
        "to",
        "type_as",
        "embedding",
        "clone",
        "contiguous",
        "detach",
    ),
}
_VIEWS = {"view", "reshape", "unsqueeze", "expand", "__getitem__"}


class Counted(torch.Tensor):
    """Positions [S], or what was computed of them, [S,…]; `rows` is the same with an axis for the rows, [B,S,…]."""

    rows: torch.Tensor

    @classmethod
    def of(cls, shadow: torch.Tensor, rows: torch.Tensor) -> Counted:
        """A tensor that looks like `shadow`."""
        with recording.paused(), torch._C.DisableTorchFunctionSubclass():
            made = shadow.detach().as_subclass(cls)
        made.rows = rows
        return made

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do it to the rows as well."""
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            shadow = function(*args, **kwargs)
            if not isinstance(shadow, torch.Tensor):
                return shadow
            if name in _VIEWS:
                return _viewed(args[0], (*args[1:], *kwargs.values()), shadow)
            if name in _ELEMENTWISE:
                return _computed(function, args, kwargs, shadow)
        return shadow


def _viewed(source: Counted, how: Sequence[Any], shadow: torch.Tensor) -> torch.Tensor:
    """A view that gives the rows an axis before all others, [1,S,…] or [B,S,…], of which the rest is only reshaped."""
    index = how[0] if len(how) == 1 and isinstance(how[0], tuple) else how
    whole = all(
        each is None or isinstance(each, int) or (isinstance(each, slice) and each == slice(None))
        for each in index
    )
    batch, (first, *rest) = source.rows.shape[0], shadow.shape or (0,)
    if whole and len(rest) >= source.ndim and first in (1, batch) and math.prod(rest) == source.numel():
        return source.rows.reshape(batch, *rest)
    return shadow


def _computed(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], shadow: torch.Tensor
) -> torch.Tensor:
    """What is computed element by element, with other tensors that have an axis for the rows, or have none."""
    axes = max(each.ndim for each in args if isinstance(each, torch.Tensor)) if len(args) > 1 else 0
    if function is torch.nn.functional.embedding:
        axes = 0

    def row(each: Any) -> Any:
        if not isinstance(each, Counted):
            return each
        missing = max(0, axes - 1 - each.ndim)
        return each.rows.reshape(each.rows.shape[0], *[1] * missing, *each.shape) if missing else each.rows

    rows: torch.Tensor = function(*map(row, args), **kwargs)
    return rows if rows.shape == shadow.shape else Counted.of(shadow, rows)


class Counting(TorchFunctionMode):
    """Makes `torch.arange` count `position_ids` [B,S] where it would count the new tokens from 0."""

    def __init__(self, position_ids: torch.Tensor) -> None:
        self._position_ids = position_ids

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides`."""
        made = function(*args, **(kwargs or {}))
        length = self._position_ids.shape[1]
        if function is torch.arange and args in ((length,), (0, length)) and made.device.type == "meta":
            return Counted.of(made, self._position_ids.to(made.dtype))
        return made


def replacements(
    path: str, module: Any, position_ids: Callable[[], torch.Tensor]
) -> dict[str, Callable[..., Any]]:
    """What stands for methods of a module that counts from its padding id's number; none for any other.

    Args:
        path: of the module.
        module: the one that is traced.
        position_ids: gives those of the call that is traced, int64 [B,S].

    Raises:
        UnsupportedModel: it counts in another way.
    """
    if not callable(getattr(module, METHOD, None)):
        return {}
    forward, first = module.forward, _first(path, module)
    takes = "position_ids" in inspect.signature(forward).parameters

    def without_positions(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **{**kwargs, **({"position_ids": None} if takes else {})})

    return {"forward": without_positions, METHOD: lambda *_, **__: position_ids() + first}


def _first(path: str, module: Any) -> int:
    """The number of the first position of a text without padding."""
    padding = module.padding_idx
    with torch.device("cpu"):
        ids = torch.arange(6).view(2, 3) + (padding or 0) + 1
        made = getattr(module, METHOD)(ids, padding)
        first = int(made[0, 0])
        if not torch.equal(made, first + torch.arange(3).expand(2, 3)):
            raise UnsupportedModel(f"{path} counts positions in a way that gptport does not know")
    return first


def available(model: nn.Module) -> int | None:
    """How many positions a model has that counts from another number than 0; None where that is not so, or they never end."""
    for path, module in model.named_modules():
        table = getattr(module, "position_embeddings", None)
        if callable(getattr(module, METHOD, None)) and isinstance(table, torch.nn.Embedding):
            return table.num_embeddings - _first(path, module)
    return None
