"""`gptport chat`: a conversation on the terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .connection import add_connection, add_sampling, connected, sampling
from .terminal import put, say

if TYPE_CHECKING:
    import argparse

    from gptport_client import Client, Message, SamplingParams

HELP = "Talk with a model that is served. Ctrl-C stops an answer, Ctrl-D ends the conversation."
COMMANDS = "/reset begins anew, /exit ends; Ctrl-C stops an answer"
HISTORY_LINES = 1000


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    add_connection(command)
    add_sampling(command, max_tokens=512, temperature=0.7)
    command.add_argument("--system", metavar="TEXT", help="instructions that the conversation begins with")


def run(options: argparse.Namespace) -> None:
    """The command."""
    interactive = sys.stdin.isatty()
    with connected(options) as client:
        conversation = Conversation(client, sampling(options), options.system, options.timeout)
        if interactive:
            client.model_config()  # what is wrong with server or name shows now
            say(f"{options.model} on {options.url}; {COMMANDS}")
        with _History(enabled=interactive):
            while (line := _ask("> " if interactive else "")) is not None and line != "/exit":
                _obey(conversation, line, interactive=interactive)


class Conversation:
    """The messages so far, and who answers them."""

    def __init__(
        self, client: Client, params: SamplingParams, system: str | None, timeout: float | None
    ) -> None:
        self._client = client
        self._params = params
        self._timeout = timeout
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._system)

    def reset(self) -> None:
        """Forget all but the instructions."""
        self.messages = list(self._system)

    def say(self, text: str) -> None:
        """Say something, and show the answer as it comes. What was said of it before Ctrl-C is remembered."""
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = ""
        with (
            suppress(KeyboardInterrupt),
            self._client.chat_stream(asked, self._params, timeout=self._timeout) as stream,
        ):
            for chunk in stream:
                put(chunk.text, end="")
                answer += chunk.text
        put("")
        self.messages = [*asked, {"role": "assistant", "content": answer}]


def _obey(conversation: Conversation, line: str, *, interactive: bool) -> None:
    from gptport_client import ConnectionError, GptportError  # noqa: A004 - the client's

    if line == "/reset":
        conversation.reset()
    elif line.startswith("/"):
        say(f"{line.split()[0]} is no command; {COMMANDS}")
    elif line:
        try:
            conversation.say(line)
        except ConnectionError:
            raise
        except GptportError as error:  # such as a conversation that has become too long
            if not interactive:
                raise
            say(f"gptport: {error}")


def _ask(prompt: str) -> str | None:
    """The next line; empty after Ctrl-C, None at the end."""
    try:
        return input(prompt).strip()
    except KeyboardInterrupt:
        put("")
        return ""
    except EOFError:
        return None


class _History:
    """The lines of earlier conversations, for the arrow keys."""

    def __init__(self, *, enabled: bool) -> None:
        home = os.environ.get("XDG_STATE_HOME", "")
        state = Path(home) if Path(home).is_absolute() else Path("~/.local/state").expanduser()
        self._file = state / "gptport" / "chat_history"
        self._enabled = enabled

    def __enter__(self) -> None:
        if self._enabled:
            import readline

            with suppress(OSError):
                readline.read_history_file(self._file)

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            import readline

            readline.set_history_length(HISTORY_LINES)
            with suppress(OSError):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.touch(mode=0o600)
                readline.write_history_file(self._file)
