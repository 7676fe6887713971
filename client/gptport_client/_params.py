"""What a caller may ask for, checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TypedDict

import numpy as np

from gptport_client._errors import InvalidRequest

INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1
FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when generation ends. What is left at its default is not sent.

    Attributes:
        max_tokens: most new tokens, 1 to 2³¹-1; generation also ends where the model's length is reached.
        temperature: 0 takes the likeliest token; higher is more random. Finite; a float32 on the wire.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probability reaches this, 0 … 1; a float32 on the wire.
        seed: 0 to 2⁶⁴-1; the same seed gives the same text. None draws one.
        stop: end before the first of these strings; it is not part of the text. One string or several.

    Raises:
        InvalidRequest: a value is of the wrong type or out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] = ()

    def __post_init__(self) -> None:
        check_integer("max_tokens", self.max_tokens, 1, INT32_MAX)
        check_number("temperature", self.temperature, 0.0, FLOAT32_MAX)
        check_integer("top_k", self.top_k, 0, INT32_MAX)
        check_number("top_p", self.top_p, 0.0, 1.0)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, UINT64_MAX)
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever it was given as."""
        return tuple(self.stop)


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | tuple[str, ...] | list[str]


def sampling_params(params: SamplingParams | None, options: SamplingOptions) -> SamplingParams:
    """`params` (by default, all defaults) with the `options` in their place.

    Raises:
        InvalidRequest: an option is unknown or out of range.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise InvalidRequest(f"params is a {type(params).__name__}; give a SamplingParams")
    known = [field.name for field in fields(SamplingParams)]
    unknown = options.keys() - set(known)
    if unknown:
        raise InvalidRequest(f"{min(unknown)} is no parameter; there are {', '.join(known)}")
    return replace(params or SamplingParams(), **options)


def check_integer(field: str, value: object, low: int, high: int) -> None:
    """Raise InvalidRequest unless `value` is an integer (numpy's too, a bool not) from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidRequest(f"{field} is {value!r}, a {type(value).__name__}; give an integer")
    if not low <= value <= high:
        raise InvalidRequest(f"{field} is {value}; give an integer from {low} to {high}")


def check_number(field: str, value: object, low: float, high: float) -> None:
    """Raise InvalidRequest unless `value` is a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidRequest(f"{field} is {value!r}, a {type(value).__name__}; give a number")
    if not math.isfinite(value) or not low <= value <= high:
        raise InvalidRequest(f"{field} is {value}; give a finite number from {low:g} to {high:g}")


def check_timeout(timeout: float | None) -> None:
    """Raise InvalidRequest unless `timeout` is None or a finite number of seconds above 0."""
    if timeout is None:
        return
    check_number("timeout", timeout, 0.0, FLOAT32_MAX)
    if timeout == 0:
        raise InvalidRequest("timeout is 0; give seconds above 0, or None for no limit")


def check_text(field: str, value: object) -> None:
    """Raise InvalidRequest unless `value` is a string that is not empty and can be written as UTF-8."""
    if not isinstance(value, str):
        raise InvalidRequest(f"{field} is a {type(value).__name__}; give a str")
    if not value:
        raise InvalidRequest(f"{field} is empty; give at least one character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{field} is not valid Unicode: character {error.start} is the lone surrogate "
            f"{value[error.start]!r}; decode the text with its right encoding first"
        ) from error


def _stop_strings(stop: object) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, (tuple, list)):
        raise InvalidRequest(f"stop is a {type(stop).__name__}; give a string, or a list of strings")
    for index, string in enumerate(strings):
        check_text(f"stop[{index}]", string)
    return tuple(strings)
