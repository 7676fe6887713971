"""Conversations to text, as transformers renders a checkpoint's chat template."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from gptport_client._errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gptport_client._prompt import Message

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"
# What transformers gives every template: one that asks whether tools `is not none` takes what is undefined for some.
GIVEN = {"add_generation_prompt": True, "tools": None, "documents": None}
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing; templates read the first two


class ChatTemplate:
    """A template in the language of Jinja. It comes with a checkpoint, so it runs in a sandbox.

    Args:
        source: the template.
        variables: what it finds beside the messages: the special tokens, by name.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        self._template = _compiled(source)
        self._variables = dict(variables)

    def render(self, messages: Sequence[Message]) -> str:
        """The text that the assistant's answer goes on from.

        Raises:
            InvalidRequest: the template takes no such messages.
        """
        import jinja2

        conversation = [_message(each) for each in messages]
        try:
            text = self._template.render(messages=conversation, **GIVEN, **self._variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"messages do not fit the model's chat template: {error}") from error
        return str(text)


def read_chat_template(template: bytes | None, config: bytes) -> ChatTemplate:
    """The template in `chat_template.jinja`, or in `tokenizer_config.json`, which has the special tokens too.

    Raises:
        InvalidRequest: there is none, or it is no template.
    """
    try:
        values = json.loads(config)
        source = values.get("chat_template") if template is None else template.decode()
        if isinstance(source, list):  # several, by name
            source = {each["name"]: each["template"] for each in source}.get("default")
        tokens = {name: _token(value) for name, value in _named(values).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"the model's {CONFIG_FILE} cannot be read: {error!r}; export it again"
        ) from error
    if not isinstance(source, str):
        raise InvalidRequest(
            "the model has no chat template; use generate(), or gptport generate, with a prompt of your own"
        )
    return ChatTemplate(source, {name: token for name, token in tokens.items() if token is not None})


def _message(given: Message) -> dict[str, Any]:
    """As transformers hands it to a template: without what is null, reasoning under the names of all templates."""
    message = {name: value for name, value in given.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _named(config: dict[str, Any]) -> dict[str, Any]:
    """The special tokens by name, those of this model alone too."""
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    for field in ("extra_special_tokens", "model_specific_special_tokens"):
        more = config.get(field)
        named |= more if isinstance(more, dict) else {}
    return named


def _token(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _compiled(source: str) -> Any:
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise InvalidRequest("chat needs the package jinja2: pip install 'gptport[chat]'") from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise InvalidRequest(f"the model's chat template cannot be read: {error}") from error


def _generation_tag() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        """`{% generation %}` marks what the assistant says, for training; here it is as if it were not there."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's interface

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' filter; Jinja's own escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
