"""The options of the command `gptport`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from . import client_commands, repository_commands
from .trust import add_trust

if TYPE_CHECKING:
    _Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """The parser; the chosen subcommand's name is in `command`."""
    top = argparse.ArgumentParser(
        prog="gptport",
        description="Take a trained GPT and put it in production on Triton.",
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action="version", version=f"gptport {importlib.metadata.version('gptport')}"
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="command")
    for add in (_add_sample, _add_export, _add_package, _add_serve, _add_inspect):
        _add_debug(add(commands))
    for name, module in (repository_commands.COMMANDS | client_commands.COMMANDS).items():
        command = _command(commands, name, module.HELP)
        module.add(command)
        _add_debug(command)
    return top


def _add_debug(command: argparse.ArgumentParser) -> None:
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _command(commands: _Commands, name: str, text: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=text, description=text, allow_abbrev=False)


def _add_sample(commands: _Commands) -> argparse.ArgumentParser:
    command = _command(commands, "sample", "Write a small model as a Hugging Face directory.")
    command.add_argument(
        "name",
        metavar="NAME",
        help="smollm2 (93 MB to fetch), stories15m (112 MB) or gpt2-tiny (random weights)",
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write it (default: checkpoints/NAME)"
    )
    return command


def _add_export(commands: _Commands) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "export",
        "Export a checkpoint as Triton models NAME and NAME_step or NAME_kv, checked against torch.",
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="Hugging Face directory, hub id, or directory with a GGUF file",
    )
    _add_publishing(command, "checkpoint")
    command.add_argument(
        "--precision",
        default="fp32",
        help="fp32, int8 or int4; for CUDA also fp16 or bf16 (default: %(default)s)",
    )
    command.add_argument(
        "--quantization",
        metavar="HOW",
        help="for int8 and int4: rtn (default), k_quant, gptq; hqq for int4, smoothquant for int8 on CPUs with VNNI",
    )
    command.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="weights that share a scale, for int8 (default: 128) and int4 (default: 32)",
    )
    command.add_argument(
        "--symmetric", action="store_true", default=None, help="int8 and int4 without zero points"
    )
    command.add_argument(
        "--head-bits",
        type=int,
        metavar="N",
        help="8 (default), or 4 for int4: a smaller head is faster, and costs the most quality",
    )
    command.add_argument(
        "--compute", metavar="DTYPE", help="what int8 and int4 compute in: fp32 (default), fp16 or bf16"
    )
    command.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="threads that quantize and write the weights (default: one a core)",
    )
    command.add_argument(
        "--max-perplexity-increase",
        type=_share,
        metavar="SHARE",
        help="such as 2%%: fail if the perplexity of the evaluation text rises by more "
        "(default: 0.1%% for fp32, 1%% fp16, 3%% bf16 and int8, 25%% int4)",
    )
    command.add_argument(
        "--evaluation-text",
        type=Path,
        metavar="FILE",
        help="to compare on, and for gptq and smoothquant to calibrate with (default: a piece of prose)",
    )
    command.add_argument(
        "--lora", action="store_true", help="let the graph take LoRA adapters; see gptport export-adapter"
    )
    add_trust(command)
    return command


def _add_package(commands: _Commands) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "package",
        "Make Triton models of an ONNX directory that onnxruntime-genai's builder or optimum wrote.",
    )
    command.add_argument(
        "directory",
        type=Path,
        metavar="DIR",
        help="with an ONNX graph, its configuration and tokenizer; or the graph, where there are several",
    )
    _add_publishing(command, "directory")
    command.add_argument(
        "--evaluation-text", type=Path, metavar="FILE", help="to compare on (default: a piece of prose)"
    )
    return command


def _add_publishing(command: argparse.ArgumentParser, source: str) -> None:
    """What becomes of a `source`, and how it is served."""
    command.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        metavar="DIR",
        help="default: %(default)s",
    )
    command.add_argument("--name", help=f"name of the model (default: the {source}'s)")
    command.add_argument(
        "--keep",
        type=_count,
        metavar="N",
        help="older versions that stay, the one served before among them (default: all)",
    )
    command.add_argument(
        "--instances",
        type=_count,
        default=1,
        metavar="N",
        help="instances of each model, on the CPU or on each GPU (default: %(default)s)",
    )
    command.add_argument(
        "--gpus",
        type=_numbers,
        default=(),
        metavar="N,N",
        help="run on these GPUs (default: on the CPU; in half precision on one GPU where there is one)",
    )
    command.add_argument(
        "--threads", type=_count, metavar="N", help="threads of an instance on the CPU (default: one a core)"
    )
    command.add_argument(
        "--step-cache",
        choices=("server", "client", "both"),
        default="server",
        help="who holds the keys and values of loops that clients run: the server, which is the model NAME_step; the client, in "
        "memory that both share on one machine, NAME_kv; or both models, each with the weights in memory (default: %(default)s)",
    )
    command.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a sequence may have (default: as many as the model takes, at most 2048)",
    )


def _add_serve(commands: _Commands) -> argparse.ArgumentParser:
    command = _command(commands, "serve", "Serve a model repository with tritonserver until Ctrl-C.")
    command.add_argument(
        "repository",
        type=Path,
        nargs="?",
        default=Path("model_repository"),
        metavar="REPOSITORY",
        help="default: %(default)s",
    )
    command.add_argument(
        "--model",
        action="append",
        default=[],
        dest="models",
        metavar="NAME",
        help="serve only this model; may be repeated",
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    command.add_argument("--http-port", type=int, default=8000, metavar="PORT", help="default: %(default)s")
    command.add_argument("--grpc-port", type=int, default=8001, metavar="PORT", help="default: %(default)s")
    command.add_argument(
        "--metrics-port", type=int, default=8002, metavar="PORT", help="default: %(default)s"
    )
    command.add_argument(
        "--drain",
        type=int,
        default=5,
        metavar="SECONDS",
        help="what runs may take this long to finish at the end (default: %(default)s)",
    )
    command.add_argument(
        "--restrict-admin",
        action="store_true",
        help="close the calls that load, unload and list models, set logging and tracing or register shared memory "
        "to all who do not send $GPTPORT_ADMIN_KEY; if that is not set, to all",
    )
    command.add_argument(
        "--trace",
        metavar="URL",
        help="send OpenTelemetry spans of requests to a collector, over HTTP, such as http://localhost:4318/v1/traces",
    )
    command.add_argument(
        "--trace-rate",
        type=_count,
        default=1,
        metavar="N",
        help="with --trace: of one request in N (default: %(default)s, all)",
    )
    command.add_argument(
        "--show-log", action="store_true", help="let tritonserver's log go to standard error"
    )
    return command


def _add_inspect(commands: _Commands) -> argparse.ArgumentParser:
    command = _command(commands, "inspect", "Show what an exported model is.")
    command.add_argument(
        "model", type=Path, metavar="REPOSITORY/NAME", help="folder of a model, or of one of its versions"
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the manifest as it is")
    how.add_argument("--graph", action="store_true", help="count the nodes of the graph by operator")
    return command


def _share(text: str) -> float:
    """A share such as 2% or 0.02."""
    with contextlib.suppress(ValueError):
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= number < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a share; give one such as 2% or 0.02")


def _count(text: str) -> int:
    """A number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    """Different numbers such as 0,1."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} does not name GPUs; give their numbers, such as 0,1")
    return tuple(map(int, parts))
