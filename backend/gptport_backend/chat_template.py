"""A chat template, compiled, with what transformers gives to every one.

It came with a checkpoint, so it runs in a sandbox. Some take a time that grows with the square of the messages (Gemma 4's 30 s
for 4,000, which are 130 kB). Requests behind it wait, so it has an end.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

MISSING = "messages needs the package jinja2, which this server does not have: pip install 'gptport[chat]'"

MOST_SECONDS = 5.0  # of a thread's processor time, for one conversation
TURNS = 64  # of loops between two looks at the clock, each of which takes as long as a turn
CLOCK = "gptport_clock"


class Clock:
    """How long a template has been busy with one conversation: RequestError once that is too long."""

    def __init__(self) -> None:
        self._end = time.thread_time() + MOST_SECONDS
        self._turns = 0

    def tick(self) -> None:
        """Another turn of a loop begins."""
        self._turns += 1
        if self._turns % TURNS:
            return
        time.sleep(0)  # lets the engine go on, which would wait 5 ms for the interpreter each time
        if time.thread_time() > self._end:
            raise RequestError(
                f"messages keep the model's chat template busy for more than {MOST_SECONDS:g} seconds; send fewer of them"
            )


class Template:
    """A template of jinja2 that ticks `CLOCK`."""

    def __init__(self, template: Any) -> None:
        self._template = template

    def render(self, variables: Mapping[str, Any]) -> str:
        """The prompt. RequestError if that takes too long; a template may fail in any other way, too."""
        return str(self._template.render({**variables, CLOCK: Clock()}))


def compiled(source: str) -> Template:
    """The template that `source` is. RequestError if it is none, or jinja2 is not there."""
    try:
        from jinja2 import nodes, pass_context
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
    environment.filters["tick"] = pass_context(lambda context, _: context.parent[CLOCK].tick())
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        template = environment.parse(source)
        repeated: list[Any] = [*template.find_all((nodes.For, nodes.Macro))]
        for node in repeated:
            # A filter: a call would take several times as long in the sandbox.
            tick = nodes.Filter(nodes.Const(None), "tick", [], [], None, None)
            node.body.insert(0, nodes.ExprStmt(tick))
        return Template(environment.from_string(template))
    except Exception as error:
        raise RequestError(
            f"messages needs the model's chat template, which cannot be read: {error}"
        ) from error


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
    raise ValueError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
