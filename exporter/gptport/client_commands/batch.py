"""`gptport batch`: a file of prompts to a file of answers, line by line."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .connection import add_connection, add_sampling, connected, sampling
from .terminal import say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import BinaryIO

    from gptport_client import Outcome, Request, SamplingParams

HELP = "Answer the prompts of a file. Killed and started again, it goes on where it was."
DESCRIPTION = (
    HELP
    + ' A line of IN is a JSON object with "prompt" or "messages", and any sampling parameter by its name in Python. '
    "Line n of OUT answers line n of IN: with text, finish_reason and usage, or with the error of a request that the server "
    "refused; what the line of IN has as id stands there too. Where the server fails, the command stops, to be started again."
)


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.description = DESCRIPTION
    command.add_argument("input", metavar="IN", type=Path, help="JSON lines")
    command.add_argument("output", metavar="OUT", type=Path, help="JSON lines; is added to if it is there")
    add_connection(command)
    add_sampling(command)
    command.add_argument(
        "--concurrency", type=int, default=16, metavar="N", help="requests at a time (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """The command."""
    from gptport_client import InvalidRequest

    with connected(options) as client, options.input.open("rb") as source, _opened(options.output) as target:
        done = _complete_lines(target)
        params = sampling(options)
        lines = islice(source, done, None)
        requests = (_request(number, line, params) for number, line in enumerate(lines, done + 1))
        outcomes = client.generate_many(
            requests, concurrency=options.concurrency, progress=True, timeout=options.timeout
        )
        for outcome in outcomes:
            if outcome.error is not None and not isinstance(outcome.error, InvalidRequest):
                raise outcome.error
            target.write(json.dumps(_line(outcome), ensure_ascii=False).encode() + b"\n")
            target.flush()
        count = _complete_lines(target)
        say(f"[{count} line{'' if count == 1 else 's'} in {options.output}, {done} of them from before]")


def _request(number: int, line: bytes, params: SamplingParams) -> Request:
    from gptport_client import GptportError, Request, SamplingParams

    try:
        found = json.loads(line)
        if not isinstance(found, dict):
            raise UsageError("it is no JSON object")
        known = {field.name for field in fields(SamplingParams)}
        if unknown := found.keys() - known - {"id", "prompt", "messages"}:
            raise UsageError(f"it has the unknown key {min(unknown)!r}")
        chosen = replace(params, **{name: found[name] for name in known & found.keys()})
        return Request(found.get("prompt"), found.get("messages"), chosen, tag=found.get("id"))
    except (ValueError, UsageError, GptportError) as error:
        raise UsageError(f"line {number} of the input cannot be used: {error}") from error


def _line(outcome: Outcome) -> dict[str, Any]:
    request: Any = outcome.prompt
    head = {} if request.tag is None else {"id": request.tag}
    if outcome.result is None:
        return {**head, "error": str(outcome.error)}
    result = asdict(outcome.result)
    return {**head, **{name: result[name] for name in ("text", "finish_reason", "usage")}}


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The output, for this process alone."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path} is being written by another gptport batch; wait for it") from error
        yield file


def _complete_lines(file: BinaryIO) -> int:
    """The number of lines, after a last one that was cut off by a kill has been removed."""
    file.seek(0)
    lines = end = 0
    for line in file:
        if line.endswith(b"\n"):
            lines, end = lines + 1, end + len(line)
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return lines
