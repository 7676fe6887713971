"""Conversations to prompts, by the chat template of the checkpoint, as transformers renders it."""

from __future__ import annotations

import json
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from gptport_backend.chat_template import compiled
from gptport_backend.errors import RequestError
from gptport_backend.open_message import OpenMessage

if TYPE_CHECKING:
    from pathlib import Path

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
DEFAULT, WITH_TOOLS = "default", "tool_use"  # names of templates, where a model has several
# What transformers gives every template: one that asks whether tools `is not none` takes what is undefined for some.
GIVEN = {"add_generation_prompt": True, "tools": None, "documents": None}
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read the first two


class Chat:
    """The chat template of a model, if it has one, or several by name.

    Args:
        folder: has the files of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._compiled = cache(compiled)  # as that takes some milliseconds for 1,000 characters

    def prompt(self, messages: str, options: str | None) -> str:
        """The text that the answer to a conversation goes on from, special tokens included.

        `messages` is JSON, a list of objects with `role` and `content`; `options`, JSON too, an object of more variables for the
        template, such as `tools`. Two are not the template's: `chat_template` is the name of one, `continue_final_message` the
        name of a field, or true for `content`. RequestError if they are something else, or do not fit the template.
        """
        conversation, variables = _conversation(messages), {}
        if options is not None:
            variables = _json("chat_template_kwargs", options, dict)
        _check_lists_of_objects(variables)
        source = self._source(variables.pop("chat_template", None), variables.get("tools"))
        last = _open_message(conversation, variables, source)
        given = {**GIVEN, **self._tokens, **variables, "messages": conversation}
        template = self._compiled(source)
        try:
            prompt = template.render(given)
        except RequestError:
            raise
        except Exception as error:  # a template may fail in any way
            why = str(error)[:300] or type(error).__name__
            raise RequestError(f"messages do not fit the model's chat template: {why}") from error
        _check_whole(prompt)
        return last.cut(prompt) if last else prompt

    def _source(self, name: Any, tools: Any) -> str:
        """The template of that name, or the one that transformers takes without."""
        sources = self._sources
        if not sources:
            raise RequestError("messages needs a chat template, and this model has none; send text_input")
        if name is None:
            name = WITH_TOOLS if tools is not None and WITH_TOOLS in sources else DEFAULT
        if not isinstance(name, str) or name not in sources:
            raise RequestError(
                f"chat_template_kwargs has the chat_template {str(name)[:80]!r}; it must be one of {', '.join(sorted(sources))}"
            )
        return sources[name]

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The templates, by name."""
        found = self._config.get("chat_template")
        if (self._folder / TEMPLATE_FILE).is_file():
            found = (self._folder / TEMPLATE_FILE).read_text(encoding="utf-8")
        if isinstance(found, list):
            return {each["name"]: each["template"] for each in found}
        return {DEFAULT: found} if isinstance(found, str) else {}

    @cached_property
    def _tokens(self) -> dict[str, str]:
        """The special tokens, by name."""
        named = {name: value for name, value in self._config.items() if name.endswith("_token")}
        for field in ("extra_special_tokens", "model_specific_special_tokens"):
            more = self._config.get(field)
            named |= more if isinstance(more, dict) else {}
        tokens = {name: _token(value) for name, value in named.items()}
        return {name: token for name, token in tokens.items() if token is not None}

    @cached_property
    def _config(self) -> dict[str, Any]:
        file = self._folder / CONFIG_FILE
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return config


def _conversation(text: str) -> list[dict[str, Any]]:
    """The messages as transformers hands them to a template: without what is null, reasoning under the names of all templates."""
    found = _json("messages", text, list)
    if not found or not all(isinstance(each, dict) and "role" in each for each in found):
        raise RequestError(f"messages is {text[:80]!r}; it must be a list of objects with role and content")
    return [_message(each) for each in found]


def _message(given: dict[str, Any]) -> dict[str, Any]:
    message = {name: value for name, value in given.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _check_lists_of_objects(variables: dict[str, Any]) -> None:
    for name in ("tools", "documents"):
        value = variables.get(name)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(each, dict) for each in value)
        ):
            raise RequestError(
                f"chat_template_kwargs has the {name} {str(value)[:80]!r}; it must be a list of objects"
            )


def _open_message(
    conversation: list[dict[str, Any]], variables: dict[str, Any], source: str
) -> OpenMessage | None:
    """The last message, if `continue_final_message` asks to go on with it."""
    name = variables.pop("continue_final_message", False)
    if not name:
        return None
    if variables.setdefault("add_generation_prompt", False):
        raise RequestError(
            "chat_template_kwargs has both continue_final_message and add_generation_prompt; leave one out"
        )
    name = name if isinstance(name, str) else "content"
    last = conversation[-1]
    names = [name]
    if name in REASONING:
        names += [each for each in REASONING if each != name and last.get(each) == last.get(name)]
    if not any(each in source for each in names):
        raise RequestError(
            f"chat_template_kwargs has the continue_final_message {name[:80]!r}; the model's chat template reads no such field"
        )
    return OpenMessage(conversation, names)


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
