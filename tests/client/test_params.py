"""Wrong values are refused before anything is sent, and the message says what to do."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from gptport_client import Client, InvalidRequest, SamplingParams
from gptport_client._params import SamplingOptions, sampling_params
from gptport_client._wire import PARAMETER_TENSORS

WRONG = [
    ({"max_tokens": 0}, r"max_tokens is 0; give an integer from 1 to 2147483647, or prompt_logprobs"),
    ({"prompt_logprobs": 21}, r"prompt_logprobs is 21; give an integer from 0 to 20"),
    ({"max_tokens": -5}, r"max_tokens is -5"),
    ({"max_tokens": 2**31}, r"max_tokens is 2147483648"),
    ({"max_tokens": True}, r"max_tokens is True, a bool; give an integer"),
    ({"max_tokens": 3.0}, r"max_tokens is 3.0, a float"),
    ({"max_tokens": None}, r"max_tokens is None"),
    ({"temperature": -0.1}, r"temperature is -0.1; give a finite number from 0"),
    ({"temperature": math.nan}, r"temperature is nan"),
    ({"temperature": math.inf}, r"temperature is inf"),
    ({"temperature": 1e39}, r"temperature is 1e\+39"),
    ({"temperature": "hot"}, r"temperature is 'hot', a str; give a number"),
    ({"temperature": False}, r"temperature is False, a bool"),
    ({"top_k": -1}, r"top_k is -1; give an integer from 0"),
    ({"top_p": 1.01}, r"top_p is 1.01; give a finite number from 0 to 1"),
    ({"top_p": -0.01}, r"top_p is -0.01"),
    ({"top_p": math.nan}, r"top_p is nan"),
    ({"seed": -1}, r"seed is -1; give an integer from 0 to 18446744073709551615"),
    ({"seed": 2**64}, r"seed is 18446744073709551616"),
    ({"seed": 1.5}, r"seed is 1.5"),
    ({"stop": ""}, r"stop\[0\] is empty"),
    ({"stop": ["ok", ""]}, r"stop\[1\] is empty"),
    ({"stop": [3]}, r"stop\[0\] is a int; give a str"),
    ({"stop": {"a": 1}}, r"stop is a dict; give a string, or a list"),
    ({"min_p": -0.1}, r"min_p is -0.1; give a finite number from 0 to 1"),
    ({"typical_p": 0}, r"typical_p is 0; give a number above 0"),
    ({"repetition_penalty": 0.0}, r"repetition_penalty is 0.0; give a number above 0"),
    ({"presence_penalty": 3}, r"presence_penalty is 3; give a finite number from -2 to 2"),
    ({"logprobs": 21}, r"logprobs is 21; give an integer from 0 to 20"),
    ({"ignore_eos": 1}, r"ignore_eos is 1; give True or False"),
    ({"min_tokens": 9, "max_tokens": 8}, r"min_tokens is 9; give at most max_tokens, 8"),
    ({"stop_token_ids": 5}, r"stop_token_ids is a int; give a list"),
    ({"stop_token_ids": [-1]}, r"stop_token_ids\[0\] is -1"),
    ({"bad_words": [""]}, r"bad_words\[0\] is empty"),
    ({"logit_bias": [1]}, r"logit_bias is \[1\]; give a dict"),
    ({"logit_bias": {-1: 1.0}}, r"logit_bias\[0\] is -1"),
    ({"logit_bias": {3: math.inf}}, r"logit_bias\[3\] is inf"),
    ({"regex": ""}, r"regex is empty"),
    ({"regex": 3}, r"regex is a int; give a str"),
    ({"json_schema": {"a": object}}, r"json_schema is no JSON"),
    ({"json_schema": []}, r"json_schema is a list; give a str"),
    ({"grammar": "a" * 100_001}, r"grammar has 100001 characters; give at most 100000"),
    ({"choice": ["a"], "regex": "a"}, r"regex and choice are both given"),
    ({"stop": "\udcff"}, r"stop\[0\] is not valid Unicode"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_parameter_is_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingParams(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 1},
        {"max_tokens": np.int32(7)},
        {"temperature": 2},
        {"temperature": np.float32(0.5)},
        {"top_p": 0},
        {"top_p": 1},
        {"seed": 0},
        {"seed": 2**64 - 1},
        {"stop": "a"},
        {"stop": ["a", "ß"]},
        {"stop": []},
        {"typical_p": 1e-30},
        {"logprobs": 0},
        {"logit_bias": {}},
        {"logit_bias": {0: -100, np.int64(7): np.float32(1.5)}},
        {"priority": -(2**31)},
        {"prompt_lookup": 32},
    ],
)
def test_the_limits_themselves_are_allowed(values):
    SamplingParams(**values)


def test_the_options_of_the_methods_are_the_parameters():
    fields = {field.name: field.type for field in dataclasses.fields(SamplingParams)}
    assert {name: hint.__forward_arg__ for name, hint in SamplingOptions.__annotations__.items()} == fields
    assert fields.keys() == PARAMETER_TENSORS.keys()


def test_options_replace_params():
    params = SamplingParams(max_tokens=3, top_k=5)
    assert sampling_params(params, {"top_k": 7}) == SamplingParams(max_tokens=3, top_k=7)
    assert sampling_params(None, {"top_k": 7}) == SamplingParams(top_k=7)


def test_an_unknown_option_is_refused(client):
    with pytest.raises(InvalidRequest, match="max_token is no parameter; there are max_tokens,"):
        client.generate("a", max_token=3)
    with pytest.raises(InvalidRequest, match="params is a dict"):
        client.generate("a", {"max_tokens": 3})


def test_what_may_be_given_in_several_ways_is_the_same_afterwards():
    assert SamplingParams(logit_bias={7: 1}) == SamplingParams(logit_bias=((7, 1.0),))
    assert hash(SamplingParams(stop_token_ids=[1])) == hash(SamplingParams(stop_token_ids=(1,)))
    assert SamplingParams(json_schema={"type": "null"}) == SamplingParams(json_schema='{"type": "null"}')
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is empty"),
        ("a\ud800", r"character 1 is the lone surrogate '\\ud800'"),
        ([], "prompt has no tokens"),
        ([1, -2], r"prompt\[1\] is -2"),
        ([1, True], r"prompt\[1\] is True, a bool"),
        (["a"], r"prompt\[0\] is 'a', a str"),
        ([2**31], r"prompt\[0\] is 2147483648"),
        (b"text", "prompt is bytes; decode it"),
        (None, "prompt is a NoneType; give a str or a sequence"),
        (7, "prompt is a int"),
    ],
)
@pytest.mark.parametrize("loop", ["server", "client"])
def test_a_wrong_prompt_is_refused_before_anything_is_sent(client, toy, loop, prompt, message):
    for ask in (client.stream, client.generate):
        with pytest.raises(InvalidRequest, match=message):
            ask(prompt, loop=loop)
    assert not toy.requests
    assert not toy.steps


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, True, "1"])
def test_a_wrong_timeout_is_refused(client, timeout):
    with pytest.raises(InvalidRequest, match="timeout"):
        client.generate("a", timeout=timeout)


@pytest.mark.parametrize("option", [{"lora_name": "pirate"}, {"regex": "a+"}])
def test_what_only_the_server_can_do_is_refused_for_a_loop_of_ones_own(client, toy, option):
    with pytest.raises(InvalidRequest, match=f"{min(option)} is for the server's loop"):
        client.generate("a", loop="client", **option)
    assert not toy.steps


def test_a_wrong_loop_is_refused(client):
    with pytest.raises(InvalidRequest, match="'server' or 'client'"):
        client.generate("a", loop="neither")


@pytest.mark.parametrize("model", ["", "a/b", "..", "../a", "a\\b", "a b", "a\n", "a\0", None, 3])
def test_a_wrong_model_name_is_refused(model):
    with pytest.raises(InvalidRequest, match="model is"):
        Client(model=model)


@pytest.mark.parametrize("url", ["", "ftp://localhost:8000", "localhost:99999", "a b", "host/path", None])
def test_a_wrong_url_is_refused(url):
    with pytest.raises(InvalidRequest, match="url is"):
        Client(url, model="toy")


@pytest.mark.parametrize("tokenizer", ["/nowhere", 3, __file__])
def test_a_wrong_tokenizer_is_refused(tokenizer):
    with pytest.raises(InvalidRequest, match="tokenizer"):
        Client(model="toy", tokenizer=tokenizer)
