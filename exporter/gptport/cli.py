"""The command `gptport`: parse, call, print.

Every command imports what it needs when it runs, so that `gptport generate` works where only the client is installed. This
is the one module that knows the client; the packages themselves do not import each other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .arguments import parser
from .errors import GptportError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence

    from gptport_client import Chunk

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

_EXTRA_OF = {
    "torch": "export",
    "transformers": "export",
    "onnx_ir": "export",
    "safetensors": "export",
    "rich": "export",
    "onnxruntime": "export",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, 1 for a failure, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    try:
        code = _COMMANDS[options.command](options) or 0
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


def run() -> NoReturn:
    """The command's entry. It leaves without taking torch apart first, which takes as long as half an export of a small model."""
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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


def _sample(options: argparse.Namespace) -> None:
    from . import console, samples

    console.quiet_transformers()
    target = options.output or Path("checkpoints") / options.name
    with console.Steps() as steps:
        found = samples.sample(options.name, target, steps)
    _print(str(found))


def _export(options: argparse.Namespace) -> None:
    from . import locate, precision, repository

    chosen = precision.chosen(
        options.precision,
        algorithm=options.quantization,
        block_size=options.block_size,
        symmetric=options.symmetric,
        compute=options.compute,
        max_perplexity_increase=options.max_perplexity_increase,
    )
    if options.name is not None:
        repository.checked_name(options.name)
    location = locate.locate(options.checkpoint, allow_pickle=options.allow_pickle)
    from . import checkpoint, console, export, report

    console.quiet_transformers()
    source = checkpoint.located(location, trust_remote_code=options.trust_remote_code)
    name = options.name or source.name
    with console.Steps() as steps:
        exported = export.export(
            source,
            options.repository,
            name,
            chosen,
            options.max_length,
            steps,
            options.evaluation_text,
            options.jobs,
        )
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


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "sample": _sample,
    "export": _export,
    "serve": _serve,
    "generate": _generate,
    "inspect": _inspect,
}


if __name__ == "__main__":
    run()
