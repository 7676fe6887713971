"""What a caller may ask for, checked before anything is sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import numpy as np

from gptport_client._errors import InvalidRequest

INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1
FLOAT32_MAX = 3.4028234663852886e38
MOST_ANSWERS = 128  # of one request
MOST_FORM_CHARACTERS = 100_000
FORMS = ("json_schema", "regex", "choice", "grammar")


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen and when generation ends. What is left at its default is not sent.

    Numbers that are not whole are float32 on the wire.

    Attributes:
        max_tokens: most new tokens, 1 to 2³¹-1, or 0 with prompt_logprobs; generation also ends where the model's length is
            reached.
        temperature: 0 takes the likeliest token; higher is more random.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens whose probability reaches this, 0 … 1.
        seed: 0 to 2⁶⁴-1; the same seed gives the same text. None draws one.
        stop: end before the first of these strings, or special tokens; it is not part of the text. One string or several.
        min_p: keep the tokens at least this many times as likely as the likeliest one, 0 … 1.
        typical_p: keep the tokens nearest to the expected surprise whose probability reaches this, above 0, at most 1.
        repetition_penalty: above 0; divides positive logits and multiplies negative ones of the tokens in prompt and answer.
        presence_penalty: -2 … 2; taken from the logits of the tokens in the answer.
        frequency_penalty: -2 … 2; taken from them as often as each is there.
        logit_bias: token id → what is added to its logit; kept as pairs.
        bad_words: strings whose tokens, with or without a space before them, never come. One or several.
        stop_token_ids: end with the first of these tokens.
        min_tokens: neither an end-of-text token nor one of stop_token_ids comes before so many new tokens.
        ignore_eos: an end-of-text token does not end the answer.
        logprobs: give the log-probability of each new token, and of the n likeliest at its place, 0 to 20.
        prompt_logprobs: give the log-probabilities of the prompt's tokens, and of the n likeliest in the place of each, 0 to 20.
        priority: of the requests that wait on the server, the one with the smallest runs first.
        json_schema: the answer is JSON of this schema, a dict or its text. This and the next three are for the server's loop.
        regex: the whole answer matches this regular expression.
        choice: the answer is one of these strings.
        grammar: the answer is of this grammar, in llguidance's kind of Lark. Of the four, one at most.
        lora_name: the LoRA adapter beside the model to generate with; for the server's loop, too.
        prompt_lookup: most tokens that the server guesses at once from what prompt and answer repeat, 0 (none) to 32: the same
            text, up to the graph's rounding, sooner. The client's loop goes on without.

    Raises:
        InvalidRequest: a value is of the wrong type or out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | tuple[str, ...] | list[str] = ()
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    bad_words: str | tuple[str, ...] | list[str] = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: tuple[str, ...] | list[str] = ()
    grammar: str | None = None
    lora_name: str | None = None
    prompt_lookup: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _INTEGERS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                check_integer(name, value, low, high)
        if self.max_tokens == 0 and self.prompt_logprobs is None:
            raise InvalidRequest("max_tokens is 0; give an integer from 1 to 2147483647, or prompt_logprobs")
        for name, (lowest, highest) in _NUMBERS.items():
            check_number(name, getattr(self, name), lowest, highest)
        for name in ("repetition_penalty", "typical_p"):
            if np.float32(getattr(self, name)) <= 0:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; give a number above 0")
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequest(f"ignore_eos is {self.ignore_eos!r}; give True or False")
        if self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens is {self.min_tokens}; give at most max_tokens, {self.max_tokens}"
            )
        for name, normal in (
            ("stop", _strings("stop", self.stop)),
            ("bad_words", _strings("bad_words", self.bad_words)),
            ("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids)),
            ("logit_bias", _biases(self.logit_bias)),
            ("json_schema", _schema(self.json_schema)),
            ("choice", _strings("choice", self.choice)),
        ):
            object.__setattr__(self, name, normal)
        self._check_forms()

    def _check_forms(self) -> None:
        for name in ("json_schema", "regex", "grammar", "lora_name"):
            value = getattr(self, name)
            if value is not None:
                check_text(name, value)
        for name in self.forms:
            value = getattr(self, name)
            count = len(value) if isinstance(value, str) else sum(map(len, value))
            if count > MOST_FORM_CHARACTERS:
                raise InvalidRequest(f"{name} has {count} characters; give at most {MOST_FORM_CHARACTERS}")
        if len(self.forms) > 1:
            raise InvalidRequest(
                f"{self.forms[0]} and {self.forms[1]} are both given; an answer can have one form only"
            )

    @property
    def forms(self) -> tuple[str, ...]:
        """Which of json_schema, regex, choice and grammar are given."""
        return tuple(name for name in FORMS if getattr(self, name))

    @property
    def for_the_server(self) -> tuple[str, ...]:
        """What is given that only the server's loop can do."""
        return (*self.forms, *(("lora_name",) if self.lora_name else ()))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever it was given as."""
        return tuple(self.stop)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs of token id and number, whatever it was given as."""
        return tuple(self.logit_bias.items() if isinstance(self.logit_bias, Mapping) else self.logit_bias)


_INTEGERS = {
    "max_tokens": (0, INT32_MAX),
    "top_k": (0, INT32_MAX),
    "seed": (0, UINT64_MAX),
    "min_tokens": (0, INT32_MAX),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "priority": (-INT32_MAX - 1, INT32_MAX),
    "prompt_lookup": (0, 32),
}
_OPTIONAL = ("seed", "logprobs", "prompt_logprobs")
_NUMBERS = {
    "temperature": (0.0, FLOAT32_MAX),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical_p": (0.0, 1.0),
    "repetition_penalty": (0.0, FLOAT32_MAX),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    stop: str | tuple[str, ...] | list[str]
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...]
    bad_words: str | tuple[str, ...] | list[str]
    stop_token_ids: tuple[int, ...] | list[int]
    min_tokens: int
    ignore_eos: bool
    logprobs: int | None
    prompt_logprobs: int | None
    priority: int
    json_schema: str | Mapping[str, Any] | None
    regex: str | None
    choice: tuple[str, ...] | list[str]
    grammar: str | None
    lora_name: str | None
    prompt_lookup: int


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


def _strings(field: str, given: object) -> tuple[str, ...]:
    strings = (given,) if isinstance(given, str) else given
    if not isinstance(strings, (tuple, list)):
        raise InvalidRequest(f"{field} is a {type(given).__name__}; give a string, or a list of strings")
    for index, string in enumerate(strings):
        check_text(f"{field}[{index}]", string)
    return tuple(strings)


def _schema(given: object) -> object:
    if not isinstance(given, Mapping):
        return given
    try:
        return json.dumps(given, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"json_schema is no JSON: {error}") from error


def _token_ids(field: str, given: object) -> tuple[int, ...]:
    if not isinstance(given, (tuple, list)):
        raise InvalidRequest(f"{field} is a {type(given).__name__}; give a list of token ids")
    for index, token in enumerate(given):
        check_integer(f"{field}[{index}]", token, 0, INT32_MAX)
    return tuple(map(int, given))


def _biases(given: object) -> tuple[tuple[int, float], ...]:
    pairs = tuple(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise InvalidRequest(f"logit_bias is {given!r}; give a dict of token ids and numbers")
    ids = _token_ids("logit_bias", [token for token, _ in pairs])
    for token, bias in pairs:
        check_number(f"logit_bias[{token}]", bias, -FLOAT32_MAX, FLOAT32_MAX)
    if len(set(ids)) < len(ids):
        raise InvalidRequest("logit_bias has a token id twice; give each once")
    return tuple((token, float(bias)) for token, (_, bias) in zip(ids, pairs, strict=True))
