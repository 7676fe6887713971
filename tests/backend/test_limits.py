"""Every input of the table is refused beyond its limits, by a message with its name, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import tensors
from gptport_backend.errors import RequestError
from gptport_backend.parameters import MOST_CHARACTERS, MOST_JSON, MOST_TEXTS, PARAMETERS
from gptport_backend.request import parse

NO_NUMBER, ENDLESS = float("nan"), float("inf")
LONG = "a" * (MOST_CHARACTERS + 1)
# Of each input, what is just allowed, and what just is not.
LIMITS: dict[str, tuple[list[Any], list[Any]]] = {
    "text_input": (["a"], [""]),
    "input_ids": ([[0], [2**31 - 1]], [[], [-1], [5, -1]]),
    "messages": (["[]", " " * MOST_JSON], ["", " " * (MOST_JSON + 1)]),
    "chat_template_kwargs": (["{}", " " * MOST_JSON], ["", " " * (MOST_JSON + 1)]),
    "lora_name": (["a"], [""]),
    "max_tokens": ([1, 2**31 - 1], [0, -1]),
    "temperature": ([0.0, 3e38], [-1e-30, NO_NUMBER, ENDLESS]),
    "top_k": ([0, 2**31 - 1], [-1]),
    "top_p": ([0.0, 1.0], [-1e-30, 1.0001, NO_NUMBER]),
    "min_p": ([0.0, 1.0], [-1e-30, 1.0001, NO_NUMBER]),
    "typical_p": ([1e-30, 1.0], [0.0, -0.5, 1.0001, NO_NUMBER]),
    "repetition_penalty": ([1e-30, 3e38], [0.0, -1.0, NO_NUMBER, ENDLESS]),
    "presence_penalty": ([-2.0, 2.0], [-2.001, 2.001, NO_NUMBER]),
    "frequency_penalty": ([-2.0, 2.0], [-2.001, 2.001, NO_NUMBER]),
    "logit_bias_ids": ([[], [0, 1]], [[-1], [3, 3]]),
    "logit_bias_values": ([[], [-3e38, 3e38]], [[NO_NUMBER, 0.0], [0.0, ENDLESS]]),
    "bad_words": (["", ["a"] * MOST_TEXTS, LONG[1:]], [["a", ""], ["a"] * (MOST_TEXTS + 1), LONG]),
    "n": ([1, 128], [0, 129]),
    "beam_width": ([1, 64], [0, 65]),
    "length_penalty": ([-10.0, 10.0], [-10.01, 10.01, NO_NUMBER]),
    "seed": ([0, 2**64 - 1], []),
    "stop_words": (["", ["a"] * MOST_TEXTS, LONG[1:]], [["a", ""], ["a"] * (MOST_TEXTS + 1), LONG]),
    "stop_token_ids": ([[], [0, 0]], [[-1]]),
    "min_tokens": ([0, 5], [-1]),
    "ignore_eos": ([True, False], []),
    "json_schema": (["a", LONG[1:]], ["", LONG]),
    "regex": (["a", LONG[1:]], ["", LONG]),
    "choice": ([["a"] * (MOST_TEXTS + 1), LONG[1:]], ["", LONG, [LONG[1:], "a"]]),
    "grammar": (["a", LONG[1:]], ["", LONG]),
    "timeout": ([1e-30, 3e38], [0.0, -1.0, NO_NUMBER, ENDLESS]),
    "priority": ([-(2**31), 2**31 - 1], []),
    "logprobs": ([0, 20], [-1, 21]),
    "prompt_logprobs": ([0, 20], [-1, 21]),
    "prompt_lookup": ([0, 32], [-1, 33]),
    "stream": ([True, False], []),
    "exclude_input_in_output": ([True, False], []),
}
BESIDE: dict[str, dict[str, Any]] = {
    "chat_template_kwargs": {"messages": "[]"},
    "logit_bias_ids": {"logit_bias_values": [1.0, 1.0]},
    "logit_bias_values": {"logit_bias_ids": [0, 1]},
    "length_penalty": {"beam_width": 2},
}


def request(name: str, value: Any) -> dict[str, Any]:
    beside = BESIDE.get(name, {})
    if value == []:
        beside = {}
    prompts = {"text_input", "input_ids", "messages"}
    prompt = {} if prompts & {name, *beside} else {"text_input": "a"}
    return tensors(**prompt, **beside, **{name: value})


def test_the_table_has_no_other_input() -> None:
    assert list(LIMITS) == [parameter.name for parameter in PARAMETERS]


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_what_is_allowed_is_taken_and_what_is_not_is_named(parameter) -> None:
    allowed, refused = LIMITS[parameter.name]
    for value in allowed:
        parse(request(parameter.name, value))
    for value in refused:
        with pytest.raises(RequestError) as raised:
            parse(request(parameter.name, value))
        sent = repr(tuple(value)) if isinstance(value, list) else repr(value)
        sent = repr((value,)) if parameter.many and not isinstance(value, list) else sent
        shown = sent if len(sent) <= 80 else f"{sent[:77]}..."
        assert str(raised.value).startswith(f"{parameter.name} is {shown}; it must be ")
