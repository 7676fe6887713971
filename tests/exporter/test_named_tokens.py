"""Tokens that a checkpoint names in older files: the exported tokenizer has them as transformers does."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError
from gptport_backend.chat import Chat
from gptport_backend.errors import RequestError

TEXT = "a<x>b é"


def named(folder, file, **entries):
    path = folder / file
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | entries))


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("added_tokens.json", {"<x>": 384}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"384": {"content": "<x>", "special": True}}}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<x>"]}),
        ("special_tokens_map.json", {"bos_token": {"content": "<x>"}}),
    ],
    ids=["added", "decoder", "additional", "special"],
)
def test_a_token_that_tokenizer_json_lacks(gpt2, copy, file, entries):
    folder = copy(gpt2)
    named(folder, file, **entries)
    files = open_checkpoint(str(folder)).tokenizer_files()
    ids = Tokenizer.from_str(files["tokenizer.json"].decode()).encode(TEXT).ids
    assert ids == AutoTokenizer.from_pretrained(folder)(TEXT).input_ids


def test_special_tokens_that_only_their_map_names_are_in_a_conversation(gpt2, copy, tmp_path):
    folder = copy(gpt2)
    template = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    named(
        folder, "special_tokens_map.json", bos_token="<|endoftext|>", eos_token={"content": "<|endoftext|>"}
    )
    for name, content in open_checkpoint(str(folder)).tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    messages = [{"role": "user", "content": "hello"}]
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False)
    assert Chat(tmp_path).prompt(json.dumps(messages), None) == expected
    assert expected == "<|endoftext|>hello<|endoftext|>"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"bos_token": None}, "<|endoftext|>"),
        ({"bos_token": "a"}, "<|endoftext|>"),
        ({"bos_token": "<|endoftext|>"}, "<|endoftext|>"),
        ({"bos_token": None, "added_tokens_decoder": {}}, ""),
    ],
    ids=["null", "another", "the same", "beside a decoder"],
)
def test_a_role_that_two_files_have_is_the_one_that_transformers_takes(
    gpt2, copy, tmp_path, entries, expected
):
    folder = copy(gpt2)
    template = "{{ bos_token or '' }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template} | entries))
    named(folder, "special_tokens_map.json", bos_token="<|endoftext|>")
    for name, content in open_checkpoint(str(folder)).tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    messages = [{"role": "user", "content": "hello"}]
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=False) == expected
    assert Chat(tmp_path).prompt(json.dumps(messages), None) == expected


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("entries", [{}, {"eos_token": "a"}, {"bos_token": None}], ids=str)
def test_a_token_that_the_class_of_the_tokenizer_names_is_in_a_conversation(
    gpt2, copy, tmp_path, kind, entries
):
    folder = copy(gpt2)
    template = "{{ bos_token }}|{{ messages[0].content }}|{{ eos_token }}"
    config = {"tokenizer_class": kind, "chat_template": template, **entries}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in open_checkpoint(str(folder)).tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    messages = [{"role": "user", "content": "hello"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(messages, tokenize=False)
    assert Chat(tmp_path).prompt(json.dumps(messages), None) == expected
    exported = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert exported.encode(TEXT).ids == tokenizer(TEXT).input_ids


def test_what_tokenizer_json_has_is_taken_as_it_is(gpt2, copy):
    folder = copy(gpt2)
    named(folder, "special_tokens_map.json", bos_token="<|endoftext|>")
    named(folder, "added_tokens.json", **{"<|endoftext|>": 0})
    files = open_checkpoint(str(folder)).tokenizer_files()
    assert files["tokenizer.json"] == (gpt2 / "tokenizer.json").read_bytes()
    assert files["tokenizer_config.json"] == (gpt2 / "tokenizer_config.json").read_bytes()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(gpt2, copy, file, content):
    folder = copy(gpt2)
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=file):
        open_checkpoint(str(folder)).tokenizer_files()


@pytest.mark.parametrize("default", [True, False])
def test_templates_of_other_names_come_along(gpt2, copy, tmp_path, default):
    folder = copy(gpt2)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].name }} é", "utf-8")
    if default:
        (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    for name, content in open_checkpoint(str(folder)).tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    messages, tools = [{"role": "user", "content": "hello"}], [{"name": "f"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    assert Chat(tmp_path).prompt(json.dumps(messages), json.dumps({"tools": tools})) == expected == "f é"
    if default:
        assert Chat(tmp_path).prompt(json.dumps(messages), None) == "hello"
    else:
        with pytest.raises(RequestError, match="must be one of tool_use"):
            Chat(tmp_path).prompt(json.dumps(messages), None)
