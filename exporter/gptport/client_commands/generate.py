"""`gptport generate`: text that goes on, streamed to the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ..errors import UsageError
from .connection import add_connection, add_loop, add_sampling, connected, sampling
from .terminal import put, say, standard_input

if TYPE_CHECKING:
    import argparse

    from gptport_client import Stream

HELP = "Generate text with a model that is served."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument(
        "prompt", metavar="PROMPT", help="the text to go on with; - reads it from standard input"
    )
    add_connection(command)
    add_sampling(command)
    add_loop(command)
    command.add_argument(
        "--n",
        type=int,
        default=1,
        metavar="N",
        help="so many answers, one below the other; with --seed S, of S, S + 1, …",
    )
    command.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="search for the likeliest answer instead of sampling, N at a time; --n says how many of them to print",
    )
    command.add_argument(
        "--length-penalty",
        type=float,
        metavar="X",
        help="with --beams: answers are compared by log-probability / length ** X (default: 1.0)",
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object an answer when all is there, instead of streaming",
    )


def run(options: argparse.Namespace) -> None:
    """The command."""
    prompt = standard_input() if options.prompt == "-" else options.prompt
    if options.beams is not None:
        _search(prompt, options)
        return
    if options.length_penalty is not None:
        raise UsageError("--length-penalty is for beam search; give --beams too")
    with connected(options) as client:
        stream = client.stream(
            prompt, sampling(options), n=options.n, loop=options.loop, timeout=options.timeout
        )
        if not options.json and options.n == 1:
            show(stream)
            return
        for _ in stream:
            pass
        for result in stream.results:
            put(json.dumps(asdict(result), ensure_ascii=False) if options.json else f"{result.text}\n")


def _search(prompt: str, options: argparse.Namespace) -> None:
    """The best answers that beam search finds, the best first."""
    with connected(options) as client:
        params = sampling(options)
        if params != replace(type(params)(), max_tokens=params.max_tokens):
            raise UsageError(
                "--beams looks for the likeliest answer, and of how tokens are chosen takes --max-tokens only"
            )
        if not 1 <= options.n <= options.beams:
            raise UsageError(
                f"--n is {options.n}; --beams {options.beams} finds 1 to {options.beams} answers"
            )
        found = client.beam_search(
            prompt,
            beams=options.beams,
            max_tokens=options.max_tokens,
            length_penalty=1.0 if options.length_penalty is None else options.length_penalty,
            loop=options.loop,
            timeout=options.timeout,
        )
    for beam in found[: options.n]:
        put(json.dumps(asdict(beam), ensure_ascii=False) if options.json else beam.text)
        if not options.json:
            tokens = len(beam.token_ids)
            say(f"[{tokens} tokens, log-probability {beam.logprob:.3f}, ended by {beam.finish_reason}]")


def show(stream: Stream) -> None:
    """Write an answer as it comes, and below it what it took."""
    try:
        for chunk in stream:
            put(chunk.text, end="")
    except KeyboardInterrupt:
        put("")  # what is said then begins on a line of its own
        raise
    put("")
    result = stream.result
    tokens, times = result.usage.completion_tokens, result.timings
    say(
        f"[{tokens} tokens, {tokens / times.total:.1f} a second, first after {times.time_to_first_token:.2f} s, "
        f"ended by {result.finish_reason}]"
    )
