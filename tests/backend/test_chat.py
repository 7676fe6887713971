"""A conversation is the prompt that transformers makes of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys

import jinja2
import pytest

from chat_templates import CONVERSATIONS, TEMPLATES
from gptport_backend import chat_template
from gptport_backend.chat import Chat
from gptport_backend.errors import RequestError

TEMPLATE = """{{ bos_token }}{% for message in messages %}
    {%- if message.role == 'nobody' %}{{ raise_exception('there is no nobody') }}{% endif -%}
<|{{ message.role }}|>
{{ message.content | trim }}{% if tools is not none %} {{ tools | tojson }}{% endif %}
{%- if documents is not none %} more{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>{% generation %}{% endgeneration %}{% endif %}"""
MESSAGES = [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Grüße <b>世界</b>!"}]
TOOLS = [{"name": "f", "text": "<ü>"}]


@pytest.fixture
def folder(version_dir, tmp_path):
    shutil.copytree(version_dir, tmp_path / "1")
    (tmp_path / "1" / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (tmp_path / "1" / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path / "1"


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_a_conversation_is_rendered_as_transformers_does(folder, tools):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    options = {"tools": tools} if tools else {}
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **options)
    assert Chat(folder).prompt(json.dumps(MESSAGES), json.dumps(options)) == expected


@pytest.fixture(scope="module")
def theirs(version_dir):
    """transformers' tokenizer, whose special tokens those of `folder` are."""
    transformers = pytest.importorskip("transformers")
    file = str(version_dir / "tokenizer.json")
    return transformers.PreTrainedTokenizerFast(tokenizer_file=file, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_templates_of_known_kinds_are_rendered_as_transformers_does(folder, theirs, template, conversation):
    messages, options = CONVERSATIONS[conversation]
    (folder / "chat_template.jinja").write_text(TEMPLATES[template])
    given = {"add_generation_prompt": "continue_final_message" not in options, **options}
    try:
        expected = theirs.apply_chat_template(
            messages, chat_template=TEMPLATES[template], tokenize=False, **given
        )
    except (jinja2.TemplateError, TypeError, ValueError):
        with pytest.raises(RequestError):
            Chat(folder).prompt(json.dumps(messages), json.dumps(options))
    else:
        assert Chat(folder).prompt(json.dumps(messages), json.dumps(options)) == expected


def test_most_of_them_are_rendered(folder):
    """So that the test above does not compare refusals only."""
    rendered = 0
    for template in TEMPLATES.values():
        (folder / "chat_template.jinja").write_text(template)
        for messages, options in CONVERSATIONS.values():
            with contextlib.suppress(RequestError):
                rendered += bool(Chat(folder).prompt(json.dumps(messages), json.dumps(options)))
    assert rendered > 0.75 * len(TEMPLATES) * len(CONVERSATIONS)


NAMED = [
    {"name": name, "template": name + " {{ messages[0].content }}"} for name in ("default", "tool_use", "rag")
]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tools": TOOLS},
        {"tools": []},
        {"chat_template": "rag"},
        {"chat_template": "default", "tools": TOOLS},
    ],
)
def test_of_several_templates_the_one_that_transformers_takes(folder, options):
    transformers = pytest.importorskip("transformers")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED}))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options)
    assert Chat(folder).prompt(json.dumps(MESSAGES), json.dumps(options)) == expected


@pytest.mark.parametrize("field", ["extra_special_tokens", "model_specific_special_tokens"])
def test_special_tokens_of_the_model_have_their_names(folder, field):
    transformers = pytest.importorskip("transformers")
    template = "{{ bos_token }}{{ image_token }}{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text(template)
    config = {"bos_token": "<s>", field: {"image_token": "<image>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert Chat(folder).prompt(json.dumps(MESSAGES), None) == expected == "<s><image> Be brief. "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "rag"}, "has the chat_template 'rag'; it must be one of default"),
        ({"chat_template": 3}, "has the chat_template '3'; it must be one of default"),
        ({"tools": "all"}, "has the tools 'all'; it must be a list of objects"),
        ({"documents": ["a"]}, "has the documents .* it must be a list of objects"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "both continue_final_message and add_generation_prompt",
        ),
        (
            {"continue_final_message": "name"},
            "the continue_final_message 'name'; the model's chat template reads no",
        ),
        ({"continue_final_message": "content"}, "no text as content in the last one, which"),
        ({"continue_final_message": "role"}, "does not show the last one's role as it is"),
    ],
)
def test_options_that_make_no_sense_are_refused(folder, options, message):
    (folder / "chat_template.jinja").write_text("{{ messages[0].role[:1] }}{{ messages[0].content }}")
    with pytest.raises(RequestError, match=message):
        Chat(folder).prompt(
            json.dumps([*MESSAGES, {"role": "assistant", "content": None}]), json.dumps(options)
        )


def test_the_template_may_stand_in_the_configuration_of_the_tokenizer(folder):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "other", "template": "x"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert Chat(folder).prompt(json.dumps(MESSAGES), None) == " Be brief. "


def test_the_engine_answers_a_conversation(serve, folder, monkeypatch):
    tiny = serve()
    monkeypatch.setattr(tiny.vocabulary.chat, "_folder", folder)
    prompt = Chat(folder).prompt(json.dumps(MESSAGES), None)
    expected = tiny.ask(text_input=prompt, max_tokens=9).wait()
    answer = tiny.ask(messages=json.dumps(MESSAGES), max_tokens=9).wait()
    assert (answer.token_ids, answer.text) == (expected.token_ids, expected.text)
    whole = tiny.ask(messages=json.dumps(MESSAGES), max_tokens=9, exclude_input_in_output=False).wait()
    assert whole.text == prompt + expected.text


def test_the_template_is_compiled_once(folder, monkeypatch):
    chat = Chat(folder)
    prompt = chat.prompt(json.dumps(MESSAGES), None)
    monkeypatch.setattr(jinja2.Environment, "compile", None)
    assert chat.prompt(json.dumps(MESSAGES), None) == prompt


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"messages": "["}, "messages is no JSON"),
        ({"messages": "[" * 100_000}, "messages is no JSON"),
        ({"messages": "{}"}, "messages is .* must be a JSON list"),
        ({"messages": "[]"}, "messages is .* list of objects with role and content"),
        ({"messages": '["a"]'}, "messages is .* list of objects"),
        (
            {"messages": '[{"role": "user", "content": "a\\ud800"}]'},
            "messages have '.ud800', which is half a character",
        ),
        ({"messages": '[{"role": "nobody"}]'}, "messages do not fit .* there is no nobody"),
        (
            {"messages": '[{"role": "user", "content": "a"}]', "chat_template_kwargs": "3"},
            "chat_template_kwargs is",
        ),
        (
            {"messages": '[{"role": "user", "content": "a"}]', "text_input": "a"},
            "both text_input and messages",
        ),
        ({"text_input": "a", "chat_template_kwargs": "{}"}, "chat_template_kwargs is there without messages"),
        ({}, "the request has no prompt; send exactly one of text_input, input_ids, messages"),
    ],
)
def test_what_is_no_conversation_is_refused(serve, folder, monkeypatch, inputs, message):
    tiny = serve()
    monkeypatch.setattr(tiny.vocabulary.chat, "_folder", folder)
    with pytest.raises(RequestError, match=message):
        tiny.ask(**inputs)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe|undefined"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% for _ in range(1000000) %}{% endfor %}", "Range too big"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "recursion"),
        ("{{ 'a' * 10**15 }}", "MemoryError"),
    ],
)
def test_a_template_cannot_leave_its_sandbox(folder, template, message):
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(RequestError, match=message):
        Chat(folder).prompt(json.dumps(MESSAGES), None)


def test_a_model_without_a_template_and_a_server_without_jinja_say_so(serve, folder, monkeypatch):
    with pytest.raises(RequestError, match="needs a chat template, and this model has none; send text_input"):
        serve().ask(messages=json.dumps(MESSAGES))
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RequestError, match=r"needs the package jinja2.*pip install"):
        Chat(folder).prompt(json.dumps(MESSAGES), None)


FOR_EVER = {
    "nested loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "all messages for each": """{% for a in messages %}{% for b in messages %}
        {% set c = a.content ~ b.content %}{% endfor %}{% endfor %}""",
    "a macro that calls itself twice": """{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}
        {% endmacro %}{{ f(99) }}""",
}


@pytest.mark.parametrize("template", FOR_EVER.values(), ids=FOR_EVER)
def test_a_template_that_takes_too_long_is_stopped(folder, monkeypatch, template):
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(
        RequestError, match=r"^messages keep the .* busy for more than 0.2 seconds; send fewer"
    ):
        Chat(folder).prompt(json.dumps(MESSAGES * 20_000), json.dumps({chat_template.CLOCK: None}))
