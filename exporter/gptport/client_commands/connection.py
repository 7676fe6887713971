"""The options for a server, a model and sampling, and the connection that they make."""

from __future__ import annotations

import argparse
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GptportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptport_client import Client, SamplingParams

_NUMBERS = {  # option → metavar, default, help
    "min_p": ("P", 0.0, "keep the tokens at least P times as likely as the likeliest"),
    "typical_p": ("P", 1.0, "keep the tokens nearest to the expected surprise up to this probability"),
    "repetition_penalty": ("R", 1.0, "above 1: less of what is in prompt and answer"),
    "presence_penalty": ("X", 0.0, "taken from the logits of what is in the answer, -2 to 2"),
    "frequency_penalty": ("X", 0.0, "taken as often as it is there, -2 to 2"),
}
_OTHERS = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    "stop",
    "bad_words",
    "min_tokens",
    "ignore_eos",
    "json_schema",
    "regex",
    "choice",
    "lora_name",
    "prompt_lookup",
)


def add_connection(command: argparse.ArgumentParser) -> None:
    """Which model, and where."""
    command.add_argument("--model", required=True, metavar="NAME", help="the model's name")
    add_server(command)
    command.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="give up on an answer after this long"
    )


def add_server(command: argparse.ArgumentParser) -> None:
    """Where the server is."""
    command.add_argument(
        "--url", default="localhost:8001", help="gRPC address of the server (default: %(default)s)"
    )
    command.add_argument(
        "--header",
        action="append",
        default=[],
        type=_header,
        metavar="NAME=VALUE",
        help="sent with each request; may be repeated",
    )
    command.add_argument(
        "--ca", type=Path, metavar="FILE", help="for grpcs:// addresses: PEM file that certifies the server"
    )


def add_sampling(command: argparse.ArgumentParser, max_tokens: int = 256, temperature: float = 0.0) -> None:
    """How tokens are chosen and when an answer ends."""
    command.add_argument(
        "--max-tokens",
        type=int,
        default=max_tokens,
        metavar="N",
        help="most new tokens (default: %(default)s)",
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help="0 takes the likeliest token (default: %(default)s)",
    )
    command.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens; 0 keeps all"
    )
    command.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="keep the likeliest tokens up to this probability",
    )
    for name, (metavar, default, meaning) in _NUMBERS.items():
        option = f"--{name.replace('_', '-')}"
        command.add_argument(option, type=float, default=default, metavar=metavar, help=meaning)
    command.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    command.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    command.add_argument(
        "--bad-word",
        dest="bad_words",
        action="append",
        default=[],
        metavar="TEXT",
        help="never write this; may be repeated",
    )
    command.add_argument(
        "--min-tokens", type=int, default=0, metavar="N", help="no end of text before so many new tokens"
    )
    command.add_argument(
        "--json-schema", metavar="JSON", help="the answer is JSON of this schema; {} for any"
    )
    command.add_argument("--regex", metavar="REGEX", help="the whole answer matches this")
    command.add_argument(
        "--choice", action="append", default=[], metavar="TEXT", help="the answer is one of these; repeat it"
    )
    command.add_argument(
        "--lora", dest="lora_name", metavar="NAME", help="the LoRA adapter beside the model to use"
    )
    command.add_argument(
        "--prompt-lookup",
        type=int,
        default=0,
        metavar="N",
        help="guess up to N tokens at once from what prompt and answer repeat: the same text, sooner where it repeats",
    )
    command.add_argument("--ignore-eos", action="store_true", help="an end of text does not end the answer")


def add_loop(command: argparse.ArgumentParser) -> None:
    """Who runs the loop, and for the client's, which goes over a step model, whose tokenizer."""
    command.add_argument(
        "--loop",
        choices=("server", "client"),
        default="server",
        help="who runs the loop (default: %(default)s)",
    )
    command.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="tokenizer.json, where NAME itself is not served"
    )


def sampling(options: argparse.Namespace) -> SamplingParams:
    """The sampling parameters of the command."""
    from gptport_client import SamplingParams

    return SamplingParams(**{name: getattr(options, name) for name in (*_NUMBERS, *_OTHERS)})


@contextmanager
def connected(options: argparse.Namespace) -> Iterator[Client]:
    """The client of the command; its errors become the command's."""
    import gptport_client as client

    tls = client.TLS(ca=options.ca) if options.ca else None
    tokenizer = getattr(options, "tokenizer", None)
    try:
        with client.Client(
            options.url, model=options.model, tls=tls, headers=dict(options.header), tokenizer=tokenizer
        ) as connection:
            try:
                yield connection
            except (client.ModelNotFound, client.InvalidRequest) as error:
                if names := _others(connection, error):
                    raise GptportError(
                        f"{options.url} has no text model {options.model!r}; it has {names}"
                    ) from error
                raise
    except client.InvalidRequest as error:
        raise UsageError(str(error)) from error
    except client.ConnectionError as error:
        raise GptportError(f"{error}; gptport serve starts one here") from error
    except client.GptportError as error:
        raise GptportError(str(error)) from error


def _others(connection: Client, error: Exception) -> str:
    """The models that there are, if the error means that there is no such text model."""
    from gptport_client import GptportError, ModelNotFound

    # What Triton says where a step model is asked for text.
    refused = re.search(r"unexpected inference input|inputs but got \d", str(error))
    if not isinstance(error, ModelNotFound) and not refused:
        return ""
    try:
        ready = {model.name for model in connection.models() if model.ready}
    except GptportError:
        return ""
    if connection.model in ready and isinstance(error, ModelNotFound):
        return ""  # its step model is missing, which the error says
    texts = {name for name in ready if not name.endswith(("_step", "_kv"))}
    return ", ".join(sorted(texts)) or "none"


def _header(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value
