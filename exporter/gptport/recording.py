"""Record what a model computes without computing it: tensors on the meta device, every ATen call noted down.

A model is run twice, at two sets of sizes. A number that is the same in both runs is a constant of the model; one that differs
is a size of the input, and the pair of values tells which. So shapes come out symbolic in the time of two dry runs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn


@dataclass(frozen=True)
class Ref:
    """A tensor of a recording, by its number."""

    number: int


@dataclass(frozen=True)
class Size:
    """A number that depends on the input: `times` what has that name, such as `batch`."""

    name: str
    times: int = 1


Argument: TypeAlias = Any
"""A Ref, a number, a Size, a dtype …, or a tuple of them."""


@dataclass(frozen=True)
class Call:
    """One operator call.

    Attributes:
        operator: `aten::add.Tensor`, or `gptport::Norm`.
        arguments: positional arguments.
        keywords: keyword arguments; the attributes, for an operator of ours.
        results: the tensors it gave.
        scope: path of the module that called it.
    """

    operator: str
    arguments: tuple[Argument, ...]
    keywords: Mapping[str, Argument]
    results: tuple[Ref, ...]
    scope: str


@dataclass
class Recording:
    """One run of a model, or two of them merged.

    Attributes:
        calls: in the order they were made.
        shapes: of each tensor, by its number.
        dtypes: likewise.
        constants: number → values, of tensors that the model makes from Python numbers.
        numbers: id of a tensor → its number.
    """

    calls: list[Call] = field(default_factory=list)
    shapes: list[tuple[int | Size, ...]] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)
    constants: dict[int, torch.Tensor] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)


_active: list[Recorder] = []

# The tensor has another number from then on. A view of it that is used later would be wrong, which verification finds.
_IN_PLACE = {
    **{f"aten::{name}_.Tensor": f"aten::{name}.Tensor" for name in ("add", "mul", "div")},
    **{
        f"aten::{name}": f"aten::{name.replace('_.', '.')}"
        for name in ("scatter_.value", "masked_fill_.Scalar")
    },
}


class Recorder(TorchDispatchMode):
    """Notes every call that is made within `with recorder.recording_of(model)`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self._scopes = [""]
        self._noting = True
        self._alive: list[torch.Tensor] = []  # so that no two tensors ever have the same id

    @contextlib.contextmanager
    def recording_of(self, model: nn.Module) -> Iterator[Recording]:
        """Note calls down for the duration, each with the path of the module of `model` that makes it."""
        paths = {module: path for path, module in model.named_modules()}
        modules = torch.nn.modules.module
        enter = modules.register_module_forward_pre_hook(
            lambda m, _: self._scopes.append(paths.get(m, self._scopes[-1]))
        )
        leave = modules.register_module_forward_hook(lambda *_: self._leave(), always_call=True)
        _active.append(self)
        try:
            with self:
                yield self.recording
        finally:
            _active.pop()
            enter.remove()
            leave.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._noting:
            return func(*args, **(kwargs or {}))
        schema = func._schema
        name = f"{schema.name}.{schema.overload_name}".removesuffix(".")
        if schema.is_mutable and name not in _IN_PLACE:
            raise UnsupportedModel(
                f"{self._scopes[-1]} changes a tensor in place ({schema.name}), which a graph cannot do"
            )
        arguments = self._noted(tuple(args))
        keywords = {name: self._noted(value) for name, value in (kwargs or {}).items()}
        result = func(*args, **(kwargs or {}))
        results = [
            each
            for each in (result if isinstance(result, list | tuple) else [result])
            if isinstance(each, torch.Tensor)
        ]
        name = _IN_PLACE.get(name, name)
        self.recording.calls.append(Call(name, arguments, keywords, self._new(results), self._scopes[-1]))
        return result

    def emit(
        self,
        operator: str,
        inputs: Sequence[torch.Tensor],
        attributes: Mapping[str, Any],
        shapes: Sequence[Sequence[int]],
    ) -> list[torch.Tensor]:
        """Note down an operator of ours, and make its results."""
        arguments = self._noted(tuple(inputs))
        with paused():
            results = [torch.empty(tuple(shape), dtype=inputs[0].dtype, device="meta") for shape in shapes]
        self.recording.calls.append(
            Call(operator, arguments, attributes, self._new(results), self._scopes[-1])
        )
        return results

    def _leave(self) -> None:
        self._scopes.pop()

    def _new(self, tensors: Sequence[torch.Tensor]) -> tuple[Ref, ...]:
        refs = []
        for tensor in tensors:
            refs.append(Ref(len(self.recording.shapes)))
            self.recording.numbers[id(tensor)] = refs[-1].number
            self.recording.shapes.append(tuple(tensor.shape))
            self.recording.dtypes.append(tensor.dtype)
            self._alive.append(tensor)
        return tuple(refs)

    def _noted(self, argument: Argument) -> Argument:
        if isinstance(argument, torch.Tensor):
            return self._ref(argument)
        return (
            tuple(self._noted(each) for each in argument) if isinstance(argument, list | tuple) else argument
        )

    def _ref(self, tensor: torch.Tensor) -> Ref:
        """The tensor's number; one that no call gave is an input, a parameter, or, with values, a constant."""
        number = self.recording.numbers.get(id(tensor))
        if number is not None:
            return Ref(number)
        (ref,) = self._new([tensor])
        if tensor.device.type != "meta":
            self.recording.constants[ref.number] = tensor.detach()
        return ref


def emit(
    operator: str, inputs: Sequence[torch.Tensor], attributes: Mapping[str, Any], *shapes: Sequence[int]
) -> list[torch.Tensor]:
    """Call an operator of ours: nothing but new meta tensors of these shapes, noted down; their dtype is the first input's."""
    return _active[-1].emit(operator, inputs, attributes, shapes)


def scope() -> str:
    """Path of the module that computes; empty outside of all."""
    return _active[-1]._scopes[-1]


def is_zeros(tensor: torch.Tensor) -> bool:
    """Whether a tensor was made by `torch.zeros`, which detaches what it makes."""
    recording = _active[-1].recording
    made = {ref.number: call for call in recording.calls for ref in call.results}
    call = made.get(recording.numbers.get(id(tensor), -1))
    while call is not None and call.operator == "aten::detach":
        call = made.get(call.arguments[0].number)
    return call is not None and call.operator == "aten::zeros"


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Compute for real, and note nothing, for the duration."""
    recorder = _active[-1]
    noting, recorder._noting = recorder._noting, False
    try:
        yield
    finally:
        recorder._noting = noting


def merged(first: Recording, second: Recording, sizes: Mapping[tuple[int, int], str]) -> Recording:
    """One recording of two runs of a model.

    Args:
        first: a run at one set of sizes; the result numbers tensors as it does.
        second: a run at another.
        sizes: (number in the first run, in the second) → name.

    Raises:
        UnsupportedModel: the model does other things at other sizes.
    """
    if [call.operator for call in first.calls] != [call.operator for call in second.calls]:
        raise UnsupportedModel("the model computes different things for different batch sizes or lengths")
    calls = [
        Call(
            a.operator,
            _merged(a.arguments, b.arguments, sizes),
            _merged_map(a.keywords, b.keywords, sizes),
            a.results,
            a.scope,
        )
        for a, b in zip(first.calls, second.calls, strict=True)
    ]
    shapes = [_merged(a, b, sizes) for a, b in zip(first.shapes, second.shapes, strict=True)]
    for number, values in first.constants.items():
        if not torch.equal(values, second.constants[number]):
            raise UnsupportedModel("the model makes constants that depend on the batch size or the length")
    return Recording(calls, shapes, first.dtypes, first.constants, first.numbers)


def _merged_map(
    a: Mapping[str, Argument], b: Mapping[str, Argument], sizes: Mapping[tuple[int, int], str]
) -> dict[str, Argument]:
    return {name: _merged(value, b[name], sizes) for name, value in a.items()}


def _merged(a: Argument, b: Argument, sizes: Mapping[tuple[int, int], str]) -> Argument:
    if isinstance(a, tuple):
        return tuple(_merged(x, y, sizes) for x, y in zip(a, b, strict=True))
    if a == b:
        return a
    if not isinstance(a, int):
        raise UnsupportedModel(f"the model computes with {a!r} at one length and with {b!r} at another")
    return _named(a, b, sizes)


def _named(a: int, b: int, sizes: Mapping[tuple[int, int], str]) -> Size:
    for (x, y), name in sizes.items():
        if a % x == 0 and b == a // x * y:
            return Size(name, a // x)
    return Size(f"{a}|{b}")


def used(recording: Recording, outputs: Sequence[int]) -> list[Call]:
    """The calls that these tensors depend on, in order."""
    needed, calls = set(outputs), []
    for call in reversed(recording.calls):
        if any(ref.number in needed for ref in call.results):
            calls.append(call)
            needed.update(tensors_of(call))
    return calls[::-1]


def tensors_of(call: Call) -> set[int]:
    """The numbers of the tensors that a call takes."""
    return set(_numbers((call.arguments, tuple(call.keywords.values()))))


def _numbers(argument: Argument) -> Iterator[int]:
    if isinstance(argument, Ref):
        yield argument.number
    elif isinstance(argument, tuple):
        for each in argument:
            yield from _numbers(each)
