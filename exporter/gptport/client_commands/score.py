"""`gptport score`: how likely a text is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .connection import add_connection, add_loop, connected
from .terminal import put, standard_input

if TYPE_CHECKING:
    import argparse

HELP = "Show how likely a text is: its log-probability and perplexity."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument("text", metavar="TEXT", help="the text; - reads it from standard input")
    add_connection(command)
    add_loop(command)
    command.add_argument(
        "--top",
        type=int,
        default=0,
        metavar="N",
        help="with --json: the N likeliest tokens in each place too",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object, with each token's share")


def run(options: argparse.Namespace) -> None:
    """The command."""
    text = standard_input() if options.text == "-" else options.text
    with connected(options) as client:
        score = client.score(text, top=options.top, loop=options.loop, timeout=options.timeout)
    if options.json:
        put(
            json.dumps(
                {
                    "logprob": score.logprob,
                    "perplexity": score.perplexity,
                    "token_ids": score.token_ids,
                    "logprobs": score.logprobs,
                    "top": score.top,
                }
            )
        )
    else:
        put(
            f"{len(score.token_ids)} tokens, log-probability {score.logprob:.3f}, perplexity {score.perplexity:.3f}"
        )
