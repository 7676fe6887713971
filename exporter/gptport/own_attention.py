"""Attention that a model writes out itself, outside of transformers' interface: softmax(q·kᵀ · scale + bias) · v.

What the model does between its cache and the product with the values is followed symbolically. The keys and values that the cache
returns, the mask and ALiBi are tensors of the class `Marked`, which have shapes but record nothing. A product with marked keys
gives marked scores, which remember their query, scale and bias; the product of their softmax with marked values is the
attention operator. Whatever else is done to them is refused by name.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode

from . import recording
from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import nn
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Mark:
    """What a marked tensor stands for.

    Attributes:
        kind: `key`, `value`, `scores`, `weights`, `mask`, `alibi`, `chunked mask`, which transformers'
            interface takes, or `other mask`, which is refused where it is used.
        original: of keys and values: the tensor [B,K,S,D] that the cache was given.
        query: of scores and weights: [B,H,S,D], or [B·H,S,D].
        scale: of scores and weights, and what slopes are multiplied by.
        slopes: of ALiBi, or of scores and weights that it was added to: one for each head.
        window: of a mask, or of scores and weights that one was applied to: tokens that one attends to; 0 for all before it;
            of a chunked mask: tokens of a chunk.
    """

    kind: str
    original: torch.Tensor | None = None
    query: torch.Tensor | None = None
    scale: float = 1.0
    slopes: tuple[float, ...] = ()
    window: int = 0


_VIEWS = {
    *(
        "transpose",
        "view",
        "reshape",
        "permute",
        "to",
        "float",
        "contiguous",
        "expand",
        "flatten",
        "__getitem__",
    ),
    *(
        "dropout",
        "type_as",
        "type",
        "repeat",
        "squeeze",
        "unsqueeze",
        "bool",
        "detach",
        "clone",
        "half",
        "bfloat16",
    ),
}
_QUESTIONS = {
    "size",
    "dim",
    "ndim",
    "stride",
    "is_floating_point",
    "__get__",
    "numel",
    "__len__",
    "__repr__",
    "element_size",
}
_PRODUCTS = {"matmul", "bmm", "__matmul__"}
_SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}
_FACTORS = {"mul", "__mul__", "__rmul__", "__imul__", "mul_"}
_QUOTIENTS = {"div", "__truediv__", "__itruediv__", "div_", "true_divide"}


class Marked(torch.Tensor):
    """A tensor on the meta device that stands for something; see `Mark`."""

    mark: Mark

    @classmethod
    def of(cls, shadow: torch.Tensor, mark: Mark) -> Marked:
        """Mark a tensor, of which only shape and dtype matter."""
        with recording.paused(), torch._C.DisableTorchFunctionSubclass():
            marked = shadow.detach().as_subclass(cls)
        marked.mark = mark
        return marked

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Follow what a model does."""
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "scaled_dot_product_attention":
            return _whole(*args, **kwargs)
        with recording.paused(), torch._C.DisableTorchFunctionSubclass():
            shadow = function(*_plain(args), **_plain(kwargs))
        parts = isinstance(shadow, list | tuple) and any(isinstance(each, torch.Tensor) for each in shadow)
        if name in _QUESTIONS or not (parts or isinstance(shadow, torch.Tensor)):
            return shadow
        mark = _followed(name, args, kwargs)
        return mark if isinstance(mark, torch.Tensor) else cls.of(shadow, mark)


def unmarked(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor behind marked keys and values; any other as it is."""
    if isinstance(tensor, Marked):
        assert tensor.mark.original is not None
        return tensor.mark.original
    return tensor


def window_of(mask: Any) -> int:
    """How many tokens a mask lets one attend to, itself included; 0 for all before it, as without a mask.

    Raises:
        UnsupportedModel: it is no mask that the operator has.
    """
    if mask is None:
        return 0
    if not isinstance(mask, Marked) or mask.mark.kind != "mask":
        raise UnsupportedModel(
            "the model has an attention mask of its own, neither causal nor a sliding window"
        )
    return mask.mark.window


def chunk_of(mask: Any) -> int:
    """How many tokens a chunk of a mask has, whose tokens attend only to each other; 0 for any other mask."""
    return mask.mark.window if isinstance(mask, Marked) and mask.mark.kind == "chunked mask" else 0


def _plain(argument: Any) -> Any:
    if isinstance(argument, Marked):
        return argument.as_subclass(torch.Tensor)
    if isinstance(argument, dict):
        return {name: _plain(value) for name, value in argument.items()}
    return type(argument)(map(_plain, argument)) if isinstance(argument, list | tuple) else argument


def _followed(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Mark | torch.Tensor:
    """What the result of a function stands for; the result itself where attention is complete."""
    given = [*args, *kwargs.values()]
    by_kind = {each.mark.kind: each.mark for each in given if isinstance(each, Marked)}
    scores = by_kind.get("scores")
    if len(by_kind) == 1 and name in _VIEWS:
        return next(iter(by_kind.values()))
    if name in _PRODUCTS and "key" in by_kind:
        return Mark("scores", by_kind["key"].original, query=args[0])
    if name in _PRODUCTS and {"weights", "value"} <= by_kind.keys():
        return _attended(by_kind["weights"], by_kind["value"], args[1])
    if name == "baddbmm" and "key" in by_kind:
        return _biased_product(args, kwargs, by_kind)
    if name in (_FACTORS | _QUOTIENTS) and (scores or "alibi" in by_kind):
        return _scaled(scores or by_kind["alibi"], given, divide=name in _QUOTIENTS)
    if scores and name in _SUMS and "alibi" in by_kind:
        return _with_bias(scores, by_kind["alibi"], 1.0)
    if scores and "mask" in by_kind and name in (*_SUMS, "masked_fill"):
        return replace(scores, window=by_kind["mask"].window)
    if scores and name in ("max", "maximum"):  # with the smallest number there is
        return scores
    if scores and name == "softmax":
        return replace(scores, kind="weights")
    raise UnsupportedModel(
        f"the attention of the model computes {name} on its {' and '.join(by_kind)}, which gptport cannot lower yet"
    )


def _biased_product(args: Sequence[Any], kwargs: dict[str, Any], by_kind: dict[str, Mark]) -> Mark:
    """Of beta · bias + alpha · q·kᵀ, whose bias is ALiBi or zeros that only make room for the product."""
    given = {**dict(zip(("input", "batch1", "batch2"), args, strict=False)), **kwargs}
    found = Mark("scores", by_kind["key"].original, given["batch1"], float(given.get("alpha", 1)))
    if "alibi" in by_kind:
        return _with_bias(found, by_kind["alibi"], float(given.get("beta", 1)))
    if not recording.is_zeros(given["input"]):
        raise UnsupportedModel("the attention of the model adds a bias of its own to its scores")
    return found


def _scaled(mark: Mark, given: Sequence[Any], *, divide: bool) -> Mark:
    numbers = [each for each in given if isinstance(each, int | float)]
    if mark.kind == "alibi" and not numbers:
        return mark  # slopes times positions
    if len(numbers) != 1:
        raise UnsupportedModel("the attention of the model is scaled by more than a number")
    factor = 1 / numbers[0] if divide else numbers[0]
    return replace(mark, scale=mark.scale * factor, slopes=tuple(slope * factor for slope in mark.slopes))


def _with_bias(scores: Mark, alibi: Mark, factor: float) -> Mark:
    return replace(scores, slopes=tuple(slope * factor for slope in alibi.slopes))


def _whole(
    query: torch.Tensor,
    key: Marked,
    value: Marked,
    attn_mask: Any = None,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    window = window_of(attn_mask)
    weights = Mark("weights", key.mark.original, query, scale or query.shape[-1] ** -0.5, window=window)
    return _attended(weights, value.mark, value)


def _attended(weights: Mark, value: Mark, like: torch.Tensor) -> torch.Tensor:
    """The attention operator, in the shape that the model expects of the product: [B,H,S,D] or [B·H,S,D]."""
    from . import swap

    query, key = weights.query, weights.original
    assert query is not None
    assert key is not None
    assert value.original is not None
    call = swap.current()
    batch, _, sequence, head_dim = key.shape
    queries = query if query.ndim == 4 else query.reshape(batch, -1, sequence, head_dim)
    out = swap.attend(
        call, call.layer, (queries, key, value.original), weights.scale, weights.window, slopes=weights.slopes
    ).transpose(1, 2)
    return out if like.ndim == 4 else out.reshape(-1, sequence, head_dim)


@contextmanager
def alibi_marked(model: nn.Module) -> Iterator[None]:
    """Let the functions of a model's source that make ALiBi give marked tensors, with the slopes that they really make."""
    source = sys.modules[type(model).__module__]
    with ExitStack() as stack:
        for name, make in list(vars(source).items()):
            if "alibi" in name and callable(make):
                stack.enter_context(patch.object(source, name, _marking(make)))
        yield


def _marking(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """[H] are slopes; of [H, 1, L] or [B·H, 1, L] a slope is the difference of two neighbours."""

    def marked(*args: Any, **kwargs: Any) -> torch.Tensor:
        with recording.paused(), torch.device("cpu"):
            on_cpu = [_on_cpu(each) for each in args]
            real = make(*on_cpu, **{name: _on_cpu(each) for name, each in kwargs.items()})
            slopes = real if real.ndim == 1 else (real[..., 1] - real[..., 0]).flatten()
            heads = next(each for each in args if isinstance(each, int))
            shadow = torch.empty(real.shape, dtype=real.dtype, device="meta")
        return Marked.of(shadow, Mark("alibi", slopes=tuple(slopes[:heads].tolist())))

    return marked


def _on_cpu(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return torch.ones(argument.shape, dtype=argument.dtype, device="cpu")
    return torch.device("cpu") if isinstance(argument, torch.device) else argument


class ListsAsSlices(TorchFunctionMode):
    """Index with `[k]` as with `k:k+1`: a list becomes a tensor, whose values are lost on the meta device."""

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `torch.overrides`."""
        if function is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (
                args[0],
                tuple(
                    slice(each[0], each[0] + 1 or None) if isinstance(each, list) and len(each) == 1 else each
                    for each in args[1]
                ),
            )
        return function(*args, **(kwargs or {}))


@contextmanager
def classes_known(config: PretrainedConfig, implementation: str) -> Iterator[None]:
    """Let a model that chooses the class of its attention by the implementation's name find one under ours."""
    from transformers import AutoModelForCausalLM

    architecture: Any = AutoModelForCausalLM._model_mapping[type(config)]
    source = sys.modules[architecture.__module__]
    with ExitStack() as stack:
        for name, classes in vars(source).items():
            if name.endswith("_ATTENTION_CLASSES") and isinstance(classes, dict):
                stack.enter_context(patch.dict(classes, {implementation: classes["eager"]}))
        yield
