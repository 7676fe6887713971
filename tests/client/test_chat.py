"""Conversations become prompts as transformers makes them; what is no conversation is refused."""

from __future__ import annotations

import json
import sys

import pytest

from gptport_client import InvalidRequest
from gptport_client._chat_template import read_chat_template
from toy_model import render

MESSAGES = [
    {"role": "system", "content": "", "name": None},
    {"role": "user", "content": "Grüße, 世界!", "reasoning": "so"},
]


@pytest.mark.parametrize("loop", ["server", "client"])
def test_a_conversation_is_a_prompt_in_the_models_template(client, loop):
    result = client.chat(MESSAGES, max_tokens=9, loop=loop)
    assert result.text == client.generate(render(MESSAGES), max_tokens=9).text


def test_a_chat_in_pieces(client):
    pieces = [chunk.text for chunk in client.chat_stream(MESSAGES, max_tokens=9)]
    assert "".join(pieces) == client.chat(MESSAGES, max_tokens=9).text


def test_the_template_is_fetched_once(client, toy):
    for _ in range(3):
        client.chat(MESSAGES, max_tokens=1)
    asked = [
        request.parameters["file"].string_param for request in toy.requests if "file" in request.parameters
    ]
    assert sorted(asked) == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]


def test_the_template_may_stand_in_the_tokenizers_configuration(client, toy):
    template = toy.files.pop("chat_template.jinja")
    toy.files["tokenizer_config.json"] = json.dumps({"chat_template": template})
    assert client.chat(MESSAGES, max_tokens=9).text == client.generate(render(MESSAGES), max_tokens=9).text


def test_a_model_without_a_template_says_so(client, toy):
    del toy.files["chat_template.jinja"]
    with pytest.raises(InvalidRequest, match="no chat template; use generate"):
        client.chat(MESSAGES)


def test_what_the_template_refuses_is_refused(client):
    with pytest.raises(InvalidRequest, match="there are no tools"):
        client.chat([{"role": "tool", "content": "a"}])


def test_a_template_cannot_leave_its_sandbox():
    source = b"{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest, match="unsafe"):
        read_chat_template(source, b"{}").render(MESSAGES)


@pytest.mark.parametrize(
    "config", [b"{", b"[]", b'{"chat_template": [{"name": "x"}]}', b'{"chat_template": "{% x %}"}']
)
def test_what_is_no_template_is_refused(config):
    with pytest.raises(InvalidRequest):
        read_chat_template(None, config)


def test_without_jinja_the_error_says_what_to_install(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'gptport\[chat\]'"):
        client.chat(MESSAGES)


TEMPLATES = [
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] | upper }}] {{ m.content | trim }}{{ eos_token }}{% endfor %}",
    "{%- for m in messages %}\n    {%- if loop.first %}first{% endif %}\n  {{ m | tojson }}\n{%- endfor %}\n",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.content == '' %}{% continue %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{{ ns.n }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% if add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}{{ messages | tojson(indent=2) }}",
    "{{ messages[1] | tojson(true, separators=(',', ':')) }}{{ messages[0].name is defined }}"
    "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ image_token }}",
    "{% if tools is not none %}tools{% endif %}{% if documents is not none %}documents{% endif %}{{ messages[1].content }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_are_rendered_as_transformers_does(template):
    from transformers import PreTrainedTokenizerFast

    from toy_model import byte_level_tokenizer

    theirs = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(),
        bos_token="<s>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    )
    expected = theirs.apply_chat_template(
        MESSAGES, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    tokens = {
        "bos_token": "<s>",
        "eos_token": {"content": "<eos>"},
        "extra_special_tokens": {"image_token": "<image>"},
    }
    config = json.dumps({**tokens, "chat_template": template})
    assert read_chat_template(None, config.encode()).render(MESSAGES) == expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hello", "messages is empty or no list"),
        (["Hello"], r"messages\[0\] is a str; give a dict"),
        ([{"content": "a"}], r"messages\[0\]\['role'\] is empty"),
        ([{"role": "user"}], r"messages\[0\]\['content'\] is a NoneType"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\['content'\] is not valid Unicode"),
    ],
)
def test_what_is_no_conversation_is_refused(client, toy, messages, message):
    with pytest.raises(InvalidRequest, match=message):
        client.chat(messages)
    assert not toy.requests
