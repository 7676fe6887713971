"""Conversations to prompts, by the chat template of the checkpoint, as transformers renders it."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
# What transformers gives every template: one that asks whether tools `is not none` takes what is undefined for some.
GIVEN = {"add_generation_prompt": True, "tools": None, "documents": None}
MISSING = "messages needs the package jinja2, which this server does not have: pip install 'gptport[chat]'"


class Chat:
    """The chat template of a model, if it has one. It came with a checkpoint, so it runs in a sandbox.

    Args:
        folder: has the files of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prompt(self, messages: str, options: str | None) -> str:
        """The text that the answer to a conversation goes on from, special tokens included.

        `messages` is JSON, a list of objects with `role` and `content`; `options`, JSON too, an object of more variables for the
        template, such as `tools`. RequestError if they are something else, or do not fit the template.
        """
        conversation, variables = _json("messages", messages, list), {}
        if options is not None:
            variables = _json("chat_template_kwargs", options, dict)
        if not conversation or not all(isinstance(each, dict) and "role" in each for each in conversation):
            raise RequestError(
                f"messages is {messages[:80]!r}; it must be a list of objects with role and content"
            )
        template, tokens = self._template
        given = {**GIVEN, **tokens, **variables, "messages": conversation}
        try:
            prompt = str(template.render(given))
        except Exception as error:  # a template may fail in any way
            why = str(error)[:300] or type(error).__name__
            raise RequestError(f"messages do not fit the model's chat template: {why}") from error
        _check_whole(prompt)
        return prompt

    @cached_property
    def _template(self) -> tuple[Any, dict[str, str]]:
        """The template, compiled once, as that takes some milliseconds for 1,000 characters; and the special tokens by name."""
        config = self._folder / CONFIG_FILE
        values: dict[str, Any] = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        source = values.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {each["name"]: each["template"] for each in source}.get("default")
        if (self._folder / TEMPLATE_FILE).is_file():
            source = (self._folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        if not isinstance(source, str):
            raise RequestError("messages needs a chat template, and this model has none; send text_input")
        tokens = {name: _token(value) for name, value in values.items() if name.endswith("_token")}
        return _compiled(source), {name: token for name, token in tokens.items() if token is not None}


def _json(field: str, text: str, kind: type[Any]) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{field} is no JSON: {error}") from error
    if not isinstance(value, kind):
        raise RequestError(
            f"{field} is {text[:80]!r}; it must be a JSON {'list' if kind is list else 'object'}"
        )
    return value


def _check_whole(prompt: str) -> None:
    """RequestError if there is half a character: JSON can say one, by an escape such as \\ud800 alone."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        half = prompt[error.start]
        raise RequestError(f"messages have {half!r}, which is half a character; send whole ones") from error


def _token(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _compiled(source: str) -> Any:
    try:
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise RequestError(MISSING) from error

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; here it is as if it were not there."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except Exception as error:
        raise RequestError(
            f"messages needs the model's chat template, which cannot be read: {error}"
        ) from error


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **options})  # Jinja's own escapes HTML


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
