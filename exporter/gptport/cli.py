"""The command `gptport`: parse, call, print.

Every command imports what it needs when it runs, so that `gptport generate` works where only the client is installed. This
is the one module that knows the client; the packages themselves do not import each other.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import GptportError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gptport_client import Chunk

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_EXTRA_OF = {
    "torch": "export",
    "transformers": "export",
    "onnx_ir": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "rich": "export",
    "onnxruntime": "export",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, 1 for a failure, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int | None] = options.run
    try:
        code = run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(options, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # nobody reads; the interpreter must not complain at exit
        return FAILURE
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        return _fail(options, f"{error.name} is not installed: pip install 'gptport[{extra}]'", FAILURE)
    except GptportError as error:
        return _fail(options, str(error), USAGE if isinstance(error, UsageError) else FAILURE)
    except OSError as error:
        return _fail(options, str(error), FAILURE)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    if options.debug:
        import traceback

        traceback.print_exc()
    _say(f"gptport: {' '.join(message.split())}")
    return code


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _print(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


def parser() -> argparse.ArgumentParser:
    """The parser of the command and of its subcommands."""
    top = argparse.ArgumentParser(
        prog="gptport",
        description="Take a trained GPT and put it in production on Triton.",
        allow_abbrev=False,
    )
    top.add_argument(
        "--version", action="version", version=f"gptport {importlib.metadata.version('gptport')}"
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_sample, _add_export, _add_serve, _add_generate, _add_inspect):
        command = add(commands)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    command = _command(commands, "sample", _sample, "Write a small model as a Hugging Face directory.")
    command.add_argument(
        "name",
        metavar="NAME",
        help="smollm2 (93 MB to fetch), stories15m (112 MB) or gpt2-tiny (random weights)",
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="where to write it (default: checkpoints/NAME)"
    )
    return command


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    command = _command(
        commands,
        "export",
        _export,
        "Export a checkpoint as Triton models NAME and NAME_step, checked against torch.",
    )
    command.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="Hugging Face directory, hub id, or directory with a GGUF file",
    )
    command.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        metavar="DIR",
        help="default: %(default)s",
    )
    command.add_argument("--name", help="name of the model (default: the checkpoint's)")
    command.add_argument("--precision", default="fp32", help="fp32, or fp16 for CUDA (default: %(default)s)")
    command.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help="tokens a sequence may have (default: the checkpoint's, at most 2048)",
    )
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read pickled weights, which can run any code their author wrote",
    )
    command.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that the checkpoint brings along"
    )
    return command


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    command = _command(commands, "serve", _serve, "Serve a model repository with tritonserver until Ctrl-C.")
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
    return command


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    command = _command(commands, "generate", _generate, "Generate text with a model that is served.")
    command.add_argument(
        "prompt", metavar="PROMPT", help="the text to go on with; - reads it from standard input"
    )
    command.add_argument("--model", required=True, metavar="NAME", help="the model's name")
    command.add_argument(
        "--url", default="localhost:8001", help="gRPC address of the server (default: %(default)s)"
    )
    command.add_argument(
        "--max-tokens", type=int, default=256, metavar="N", help="most new tokens (default: %(default)s)"
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=0.0,
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
    command.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    command.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    command.add_argument(
        "--loop",
        choices=("server", "client"),
        default="server",
        help="who runs the loop (default: %(default)s)",
    )
    command.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="for --loop client where NAME itself is not served"
    )
    command.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this long")
    command.add_argument(
        "--json", action="store_true", help="print one JSON object when all is there, instead of streaming"
    )
    return command


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    command = _command(commands, "inspect", _inspect, "Show what an exported model is.")
    command.add_argument(
        "model", type=Path, metavar="REPOSITORY/NAME", help="folder of a model, or of one of its versions"
    )
    command.add_argument("--json", action="store_true", help="print the manifest as it is")
    return command


def _sample(options: argparse.Namespace) -> None:
    from . import console, samples

    console.quiet_transformers()
    target = options.output or Path("checkpoints") / options.name
    with console.Steps() as steps:
        found = samples.sample(options.name, target, steps)
    _print(str(found))


def _export(options: argparse.Namespace) -> None:
    from . import checkpoint, console, export, precision, report, repository

    console.quiet_transformers()
    chosen = precision.by_name(options.precision)
    if options.name is not None:
        repository.checked_name(options.name)
    source = checkpoint.open_checkpoint(
        options.checkpoint, allow_pickle=options.allow_pickle, trust_remote_code=options.trust_remote_code
    )
    name = options.name or source.name
    with console.Steps() as steps:
        exported = export.export(source, options.repository, name, chosen, options.max_length, steps)
    _print(report.exported(exported, source))


def _serve(options: argparse.Namespace) -> int | None:
    from . import server

    return server.serve(
        options.repository,
        models=options.models,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        say=_say,
        debug=options.debug,
    )


def _generate(options: argparse.Namespace) -> None:
    import gptport_client as client

    prompt = (
        sys.stdin.buffer.read().decode(errors="surrogateescape") if options.prompt == "-" else options.prompt
    )
    parameters = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": options.stop,
        "loop": options.loop,
        "timeout": options.timeout,
    }
    try:
        with client.Client(options.url, model=options.model, tokenizer=options.tokenizer) as connection:
            if options.json:
                _print(json.dumps(asdict(connection.generate(prompt, **parameters)), ensure_ascii=False))
            else:
                _stream(connection.stream(prompt, **parameters))
    except client.InvalidRequest as error:
        raise UsageError(str(error)) from error
    except client.GptportError as error:
        raise GptportError(str(error)) from error


def _stream(chunks: Iterable[Chunk]) -> None:
    started, first, tokens, reason = time.monotonic(), 0.0, 0, None
    for chunk in chunks:
        first = first or time.monotonic()
        tokens += len(chunk.token_ids)
        reason = chunk.finish_reason or reason
        _print(chunk.text, end="")
    _print("")
    seconds = time.monotonic() - started
    _say(
        f"[{tokens} tokens, {tokens / seconds:.1f} a second, first after {first - started:.2f} s, ended by {reason}]"
    )


def _inspect(options: argparse.Namespace) -> None:
    from . import manifest, report

    folder = manifest.version_folder(options.model)
    found = manifest.read(folder)
    _print(json.dumps(asdict(found), indent=2) if options.json else report.inspected(folder, found))


if __name__ == "__main__":
    sys.exit(main())
