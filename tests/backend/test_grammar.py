"""Answers of a given form: whatever the model would like to say, what is finished is valid."""

from __future__ import annotations

import json
import re
import sys

import jsonschema
import numpy as np
import pytest
from tokenizers import Tokenizer

import tiny_gpt
from gptport.console import Steps
from gptport.samples import sample
from gptport_backend.errors import RequestError
from gptport_backend.grammar import Form, Grammars

SHORT = {"type": "string", "maxLength": 6}
INTEGER = {"type": "integer", "minimum": 0, "maximum": 999}
TYPES = [
    {"type": "null"},
    {"type": "boolean"},
    INTEGER,
    {"type": "integer", "minimum": -5, "maximum": 5},
    {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    {"type": "number", "minimum": 0, "maximum": 1},
    SHORT,
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-z]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"enum": ["red", "green", 7, None, True]},
    {"const": {"a": [1, 2]}},
    {"const": 'ü \\ " \n'},
    {"type": ["boolean", "null"]},
]
SCHEMAS = [
    *TYPES,
    *({"type": "array", "items": item, "maxItems": 2} for item in TYPES),
    {"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 3},
    {"type": "array", "prefixItems": [INTEGER, SHORT], "items": False, "minItems": 2},
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "object", "properties": {"a": INTEGER}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": INTEGER, "b": SHORT}, "additionalProperties": False},
    {
        "type": "object",
        "properties": {
            "user": {
                "type": "object",
                "properties": {"name": SHORT},
                "required": ["name"],
                "additionalProperties": False,
            }
        },
        "required": ["user"],
        "additionalProperties": False,
    },
    {"anyOf": [INTEGER, {"type": "null"}]},
    {"anyOf": [{"type": "boolean"}, {"const": "x"}, {"type": "array", "maxItems": 1}]},
    {"$defs": {"n": INTEGER}, "type": "array", "items": {"$ref": "#/$defs/n"}, "maxItems": 2},
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
                "required": ["next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5, "minimum": 0}]},
    {"oneOf": [{"const": 1}, {"const": "one"}]},
    {
        "type": "object",
        "properties": {"kind": {"const": "a"}, "n": INTEGER},
        "required": ["kind", "n"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"a": INTEGER},
        "patternProperties": {"^x[ab]$": {"type": "null"}},
        "additionalProperties": False,
    },
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 50},
    {"type": "string", "enum": ["", "a b"]},
]


def test_there_are_fifty_schemas():
    assert len(SCHEMAS) >= 50


CLOSING = '"}]n'  # letters by which a text comes to its end


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_json_is_of_its_schema(serve, schema):
    """The tiny model has random weights: what it would say unconstrained is never JSON."""
    tiny = serve(max_batch_size=4)
    text = json.dumps(schema)
    closing = [*tiny.tokenizer.encode(CLOSING).ids, tiny_gpt.EOS]
    in_haste = {"logit_bias_ids": closing, "logit_bias_values": [50.0] * len(closing)}
    asked = [in_haste, {}, *({"temperature": 1.0, "seed": seed} for seed in (1, 2, 3))]
    answers = [tiny.ask(text_input="x", json_schema=text, max_tokens=96, **each) for each in asked]
    finished = [answer.text for answer in answers if answer.wait().finish_reason == "stop"]
    assert not [answer.error for answer in answers if answer.error]
    assert answers[0].finish_reason == "stop"
    for found in finished:
        jsonschema.validate(json.loads(found), schema)


def test_json_is_of_its_schema_in_tokens_of_many_letters_too(tmp_path):
    """By logits at random, so that all of the tokens are tried that a form allows."""
    folder = sample("gpt2-tiny", tmp_path / "gpt2", Steps())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size, random = tokenizer.get_vocab_size(), np.random.default_rng(0)
    texts = {token: tokenizer.decode([token], skip_special_tokens=False) for token in range(size)}
    assert max(map(len, texts.values())) > 4
    eos = tokenizer.token_to_id("<|endoftext|>")
    closing = [token for token, text in texts.items() if text.strip('"}]') == "" or token == eos]
    grammars = Grammars(tokenizer, size, [eos])
    for schema in SCHEMAS:
        constraint, ids = grammars.constraint(Form("json_schema", json.dumps(schema))), []
        while not constraint.complete and eos not in ids:
            logits = random.normal(0, 4, size).astype(np.float32)
            logits[closing] += 2 * len(ids)
            constraint.forbid(logits)
            ids.append(int(logits.argmax()))
            constraint.append(ids[-1])
        jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)


@pytest.mark.parametrize("regex", ["[0-9]{3}-[a-f]{2}", "(yes|no), ü+!?", "a|ab|abc", "\\w{1,5}@x\\.org", ""])
def test_the_whole_answer_matches_a_regular_expression(serve, regex):
    if not regex:
        with pytest.raises(RequestError, match=r"regex is ''; it must be a text of 1 to"):
            serve().ask(text_input="x", regex=regex)
        return
    for inputs in ({}, {"temperature": 1.5, "seed": 4}):
        answer = serve().ask(text_input="x", regex=regex, max_tokens=100, **inputs).wait()
        assert answer.finish_reason == "length" or re.fullmatch(regex, answer.text)


def test_the_answer_is_one_of_the_choices(serve):
    choices = ["yes", "yes, please", "нет", 'a "quote" \\ and\na line']
    tiny = serve()
    found = {
        tiny.ask(text_input="x", choice=choices, temperature=100.0, seed=seed).wait().text
        for seed in range(24)
    }
    assert found <= set(choices)
    assert len(found) > 1


def test_a_grammar_of_its_own(serve):
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/'
    answer = serve().ask(text_input="x", grammar=grammar, temperature=1.0, seed=5).wait()
    assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}", answer.text)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ({"choice": ["<|end|>"]}, "<|end|>"),
        ({"choice": ["a <|end|> b <|end|>"]}, "a <|end|> b <|end|>"),
        ({"regex": r"<[|]end\|>{1}!"}, "<|end|>!"),
        ({"json_schema": '{"const": {"<|\\u0065nd|>": "<|end|>"}}'}, '{"<|end|>": "<|end|>"}'),
        ({"grammar": '%llguidance {}\nstart: "x<|end|>" <|end|>'}, "x<|end|>"),
        ({"grammar": '{"grammars": [{"lark_grammar": "start: \\"x<|end|>\\""}]}'}, "x<|end|>"),
    ],
)
def test_a_text_that_spells_a_special_token_is_text(serve, form, text):
    """The tokenizer would make the end-of-text token of it; in a grammar, llguidance's name of one means it."""
    for inputs in ({}, {"temperature": 9.0, "seed": 4}):
        answer = serve().ask(text_input="x", max_tokens=60, **form, **inputs).wait()
        assert (answer.error, answer.text, answer.finish_reason) == ("", text, "stop")


def test_a_form_is_compiled_once_for_all_who_ask_for_it(serve, monkeypatch):
    tiny = serve()
    asked = {"text_input": "x", "regex": "[ab]{3,9}", "temperature": 1.0, "seed": 3}
    alone = [tiny.ask(**{**asked, "seed": 3 + index}).wait().text for index in range(4)]
    monkeypatch.setattr("llguidance.LLMatcher.grammar_from_regex", None)
    several = tiny.ask(**asked, n=4).wait()
    assert [several.of(index).text for index in range(4)] == alone


def test_a_form_that_cannot_be_finished_is_an_error(serve):
    """llguidance allows only an end-of-text token then: the answer would look complete."""
    answer = serve().ask(text_input="x", grammar='start: "a" more\nmore: more "b"').wait()
    assert answer.error == "the form cannot be followed any further: NoExtensionBias"


def test_what_is_cut_says_so(serve):
    answer = (
        serve().ask(text_input="x", json_schema=json.dumps({"const": "a long text"}), max_tokens=4).wait()
    )
    assert (answer.text, answer.finish_reason) == ('"a l', "length")


def test_others_in_the_batch_are_as_they_are_alone(serve):
    tiny = serve()
    alone = tiny.ask(text_input="hello", max_tokens=20).wait().token_ids
    constrained = [tiny.ask(text_input="x", regex="[ab]{30}", max_tokens=40) for _ in range(3)]
    beside = tiny.ask(text_input="hello", max_tokens=20)
    assert beside.wait().token_ids == alone
    assert {re.fullmatch("[ab]{30}", answer.wait().text) is not None for answer in constrained} == {True}


def test_other_parameters_apply_too(serve):
    tiny = serve()
    answer = tiny.ask(text_input="x", regex="[ab]{5}", bad_words=["a"], min_tokens=20, ignore_eos=True).wait()
    assert (answer.text, answer.finish_reason) == ("bbbbb", "stop")
    nothing = tiny.ask(text_input="x", choice=["a"], bad_words=["a"]).wait()
    assert "no token to choose" in nothing.error


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"json_schema": "{"}, "json_schema does not compile: "),
        ({"json_schema": "[]"}, "json_schema does not compile: "),
        ({"json_schema": '{"type": "strange"}'}, "json_schema does not compile: Invalid type: strange"),
        ({"json_schema": '{"$ref": "http://x/y"}'}, "json_schema does not compile: "),
        ({"json_schema": '{"not":' * 3000 + "{}" + "}" * 3000}, "json_schema does not compile: recursion limit"),
        ({"regex": "(("}, r'regex does not compile: .*invalid regex "\(\("'),
        ({"grammar": "start: missing"}, "grammar does not compile: "),
        ({"grammar": "end: /a/"}, "grammar does not compile: "),
        ({"regex": "[^\\x00-\\x{10FFFF}]"}, "regex allows no text: "),
        ({"json_schema": '{"$ref": "#"}'}, "json_schema allows no text: "),
        ({"choice": ["a", ""]}, "choice is .* none of them empty"),
        ({"regex": "a" * 100_001}, "regex is .* 1 to 100000 characters"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice are both there"),
    ],
)  # fmt: skip
def test_what_does_not_compile_is_refused_by_name(serve, inputs, message):
    with pytest.raises(RequestError, match=message):
        serve().ask(text_input="x", **inputs)


def test_without_llguidance_the_rest_works(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    tiny = serve()
    with pytest.raises(RequestError, match=r"json_schema needs the package llguidance.*pip install"):
        tiny.ask(text_input="x", json_schema="{}")
    assert tiny.ask(text_input="x", max_tokens=2).wait().finish_reason == "length"
