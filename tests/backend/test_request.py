"""Each wrong value gets an error that names the field, the value and the limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from conftest import tensors
from gptport_backend.errors import RequestError
from gptport_backend.request import parse


def test_defaults() -> None:
    request = parse(tensors(text_input="hi"))
    assert (request.text, request.token_ids, request.max_tokens) == ("hi", None, 256)
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0, 0, 1)
    assert (request.stop_words, request.stream, request.exclude_input) == ((), False, True)


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
@pytest.mark.parametrize("others", [{}, {"beam_width": 2}], ids=str)
def test_one_empty_text_is_none_as_clients_of_tensorrt_llm_send_it(name: str, others: dict[str, int]) -> None:
    assert getattr(parse(tensors(text_input="hi", **{name: ""}, **others)), name) == ()


@pytest.mark.parametrize(
    ("seconds", "microseconds", "expected"),
    [(None, 0, None), (2.0, 0, 2), (None, 500_000, 0.5), (2.0, 500_000, 0.5), (2.0, 3_000_000, 2)],
)
def test_the_shorter_timeout_counts(seconds: float | None, microseconds: int, expected: float | None) -> None:
    timeout = {} if seconds is None else {"timeout": seconds}
    assert parse(tensors(text_input="hi", **timeout), microseconds).timeout == expected


def test_without_a_seed_each_request_has_its_own() -> None:
    assert parse(tensors(text_input="hi")).sampling.seed != parse(tensors(text_input="hi")).sampling.seed


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it must be 1 or more"),
        ({"max_tokens": -5}, "max_tokens is -5"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be a finite number, 0 (greedy) or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; it must be 0 (all) or more"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be from 0 to 1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        (
            {"stop_words": ["a", ""]},
            "stop_words is ('a', ''); it must be a list of at most 1000 texts, of 100000 characters together, ",
        ),
        ({"stop_words": ["a"] * 1001}, "it must be a list of at most 1000 texts"),
        (
            {"bad_words": ["a" * 100_001]},
            "of 100000 characters together, none of them empty; or one empty text",
        ),
        ({"stop_words": [b"\xc3"]}, "stop_words is not UTF-8: byte 0xc3 at position 0"),
        ({"text_input": ""}, "text_input is ''; it must be a text that is not empty"),
        ({"text_input": b"caf\xe9"}, "text_input is not UTF-8: byte 0xe9 at position 3; send UTF-8 text"),
        ({"input_ids": [1, 2]}, "the request has both text_input and input_ids; send exactly one of"),
        ({"top_q": np.ones(1)}, "top_q is not an input of this model; it takes text_input, input_ids, "),
        ({"max_tokens": [1, 2]}, "max_tokens has the shape [2]; it must be [1]"),
    ],
)
def test_a_wrong_value_is_named(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse(tensors(**{"text_input": "hi", **inputs}))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "the request has no prompt; send exactly one of text_input, input_ids, messages"),
        (
            {"input_ids": np.array([], np.int32)},
            "input_ids is (); it must be a list of token ids that is not empty",
        ),
        ({"input_ids": np.array([3, -1], np.int32)}, "input_ids is (3, -1)"),
        ({"input_ids": np.array([3], np.int64)}, "input_ids is of type int64; it must be INT32"),
        ({"input_ids": np.array([[3]], np.int32)}, "input_ids has the shape [1, 1]; it must be [-1]"),
        ({"text_input": np.array([1], np.int32)}, "text_input is of type int32; it must be BYTES"),
        ({"text_input": np.array([5], object)}, "text_input has an element of type int; it must be BYTES"),
    ],
)
def test_a_wrong_tensor_is_named(found: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        parse(found)
    assert message in str(raised.value)


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(RequestError) as raised:
        parse(tensors(input_ids=[-1] * 100_000))
    assert len(str(raised.value)) < 250
