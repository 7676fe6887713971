"""`gptport summarize`: what a file says, in short."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .connection import add_connection, add_sampling, connected, sampling
from .terminal import put, say, standard_input

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from gptport_client import Client, SamplingParams

HELP = "Summarize a text file. One longer than the model takes is summarized in parts, and then the parts' summaries."
INSTRUCTION = "Summarize the following text in a few sentences. Write only the summary.\n\n"
MARGIN = 64  # tokens, for the template and the instruction


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument("file", metavar="FILE", help="the text, in UTF-8; - reads standard input")
    add_connection(command)
    add_sampling(command, max_tokens=200)


def run(options: argparse.Namespace) -> None:
    """The command."""
    text = standard_input() if options.file == "-" else Path(options.file).read_text(errors="surrogateescape")
    if not text.strip():
        raise UsageError(f"{options.file} is empty; give a file with text")
    with connected(options) as client:
        params = sampling(options)
        room = client.model_config().max_length - params.max_tokens - MARGIN
        if room < 2 * params.max_tokens:
            raise UsageError(
                f"--max-tokens {params.max_tokens} leaves no room for the text in the {room + params.max_tokens + MARGIN} "
                "tokens that the model takes; give a smaller --max-tokens"
            )
        while len(parts := list(split(client, text, room))) > 1:
            say(f"[{len(parts)} parts]")
            text = "\n\n".join("".join(summary(client, part, params, options.timeout)) for part in parts)
        for piece in summary(client, text, params, options.timeout):
            put(piece, end="")
    put("")


def summary(client: Client, text: str, params: SamplingParams, timeout: float | None) -> Iterator[str]:
    """A text's summary, piece by piece. A model that has no chat template goes on where "TL;DR:" stands."""
    from gptport_client import InvalidRequest

    try:
        message = {"role": "user", "content": INSTRUCTION + text}
        for chunk in client.chat_stream([message], params, timeout=timeout):
            yield chunk.text
    except InvalidRequest:
        for chunk in client.stream(f"{text}\n\nTL;DR:", params, timeout=timeout):
            yield chunk.text


def split(client: Client, text: str, room: int) -> Iterator[str]:
    """The text in parts of at most `room` tokens, cut between lines, and within a line that is too long itself."""
    part = ""
    for line in text.splitlines(keepends=True):
        if part and len(client.tokenize(part + line)) > room:
            yield part
            part = ""
        part += line
        while len(ids := client.tokenize(part)) > room:
            cut = len(part) * room // len(ids) or 1
            yield part[:cut]
            part = part[cut:]
    if part.strip():
        yield part
