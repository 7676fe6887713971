"""All parameters on the real Triton: they arrive, do what they say, and do it in both loops and over both protocols."""

from __future__ import annotations

import json
import urllib.request

import jsonschema
import pytest
from transformers import AutoTokenizer

from gptport_client import Client, InvalidRequest
from in_torch import PROMPTS

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer", "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
EVERYTHING = {
    "temperature": 0.9,
    "top_k": 200,
    "top_p": 0.98,
    "min_p": 0.01,
    "typical_p": 0.97,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "logit_bias": {11: -5.0, 28: 1.5},
    "bad_words": ["the", "of"],
    "stop_token_ids": [9999],
    "min_tokens": 8,
    "ignore_eos": True,
    "priority": -1,
    "seed": 12,
    "logprobs": 3,
    "max_tokens": 24,
}


@pytest.fixture(params=["grpc", "http"])
def asked(server, request):
    address = server.address
    with Client(address.grpc_url if request.param == "grpc" else address.http_url, model="smollm2") as client:
        yield client


def test_every_parameter_in_both_loops(asked):
    server, own = (asked.generate(PROMPTS[0], **EVERYTHING, loop=loop) for loop in ("server", "client"))
    assert server.token_ids == own.token_ids
    assert [each.token_id for each in server.logprobs] == list(server.token_ids)
    for theirs, ours in zip(server.logprobs, own.logprobs, strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-3)
        assert [token for token, _ in theirs.top] == [token for token, _ in ours.top]
    words = server.text.split()
    assert "the" not in words
    assert "of" not in words


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 5}])
def test_tokens_guessed_from_the_prompt_leave_the_answer_as_it_is(asked, options):
    prompt = "Say it again: The quick brown fox jumps over the lazy dog. " * 3
    options = {"max_tokens": 40, "ignore_eos": True, **options}
    without, guessed = (asked.generate(prompt, **options, prompt_lookup=most) for most in (0, 10))
    assert guessed.token_ids == without.token_ids


def test_samples_share_a_prompt(asked):
    options = {"max_tokens": 16, "temperature": 0.9, "stop": [" a"], "logprobs": 1}
    found = asked.samples(PROMPTS[0], n=4, seed=5, **options)
    alone = [asked.generate(PROMPTS[0], seed=5 + index, **options) for index in range(4)]
    assert [(each.text, each.token_ids, each.finish_reason) for each in found] == [
        (each.text, each.token_ids, each.finish_reason) for each in alone
    ]
    assert [len(each.logprobs) for each in found] == [len(each.token_ids) for each in alone]


def test_an_answer_of_a_form(asked):
    for options in ({}, {"temperature": 1.2, "seed": 3}):
        result = asked.generate("A city as JSON: ", json_schema=SCHEMA, max_tokens=64, **options)
        assert result.finish_reason == "stop"
        jsonschema.validate(json.loads(result.text), SCHEMA)
        assert asked.generate("Is Paris in France? ", choice=["yes", "no"], **options).text in ("yes", "no")
    with pytest.raises(InvalidRequest, match="regex does not compile"):
        asked.generate("a", regex="((")


def test_a_conversation_on_the_server(server, asked):
    messages = [{"role": "user", "content": "Name a colour."}]
    expected = asked.chat(messages, max_tokens=12)  # whose prompt the client makes
    body = json.dumps({"messages": json.dumps(messages), "max_tokens": 12}).encode()
    with urllib.request.urlopen(f"{server.address.http_url}/v2/models/smollm2/generate", body) as answer:
        assert json.load(answer)["text_output"] == expected.text


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour.", "name": None},
]


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (TALK, {"tools": [TOOL]}),
        ([*TALK, {"role": "assistant", "content": "A nice one is"}], {"continue_final_message": True}),
        (
            [
                *TALK,
                {"role": "assistant", "content": "Red.", "reasoning": "?", "tool_calls": [CALL]},
                TALK[1],
            ],
            {},
        ),
    ],
    ids=["tools", "to be continued", "calls"],
)
def test_a_conversation_is_that_of_transformers(server, asked, checkpoints, messages, options):
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["smollm2"])
    given = {"add_generation_prompt": "continue_final_message" not in options, **options}
    ids = tokenizer.apply_chat_template(messages, return_dict=False, **given)
    expected = asked.generate(ids, max_tokens=12)
    body = {"messages": json.dumps(messages), "chat_template_kwargs": json.dumps(options), "max_tokens": 12}
    url = f"{server.address.http_url}/v2/models/smollm2/generate"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as answer:
        found = json.load(answer)
    assert (found["output_ids"], found["num_input_tokens"]) == (list(expected.token_ids), len(ids))
