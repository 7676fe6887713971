"""The command `gptport`: parse, call, print.

Every command imports what it needs when it runs, so that `gptport generate` works where only the client is installed. The
commands that look after a repository are in `repository_commands/`, those that ask a server for text in `client_commands/`.
"""

from __future__ import annotations

import gc
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import client_commands, interrupts, repository_commands
from .arguments import parser
from .client_commands.terminal import put, say
from .errors import GptportError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

FAILURE, USAGE = 1, 2

_EXTRA_OF = {
    "torch": "export",
    "transformers": "export",
    "onnx_ir": "export",
    "safetensors": "export",
    "rich": "export",
    "onnx": "export",
    "onnxruntime": "export",
    "netron": "view",
    "starlette": "gateway",
    "uvicorn": "gateway",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, 1 for a failure, 2 for wrong usage."""
    options = parser().parse_args(arguments)
    options.typed = shlex.join(["gptport", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        code = _COMMANDS[options.command](options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(options, "interrupted", interrupts.INTERRUPTED)
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
        named = error.filename is not None and error.strerror
        return _fail(options, f"{error.filename}: {error.strerror}" if named else str(error), FAILURE)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    if options.debug:
        import traceback

        traceback.print_exc()
    say(f"gptport: {' '.join(message.split())}")
    return code


def _sample(options: argparse.Namespace) -> None:
    from . import console, samples

    console.quiet_transformers()
    target = options.output or Path("checkpoints") / options.name
    with console.Steps() as steps:
        found = samples.sample(options.name, target, steps)
    put(str(found))


def _export(options: argparse.Namespace) -> None:
    from . import allocator, locate, precision, repository
    from .triton_config import Serving

    chosen = precision.chosen(
        options.precision,
        algorithm=options.quantization,
        block_size=options.block_size,
        symmetric=options.symmetric,
        head_bits=options.head_bits,
        compute=options.compute,
        max_perplexity_increase=options.max_perplexity_increase,
    )
    serving = Serving(options.instances, options.gpus, options.threads, options.step_cache)
    serving.check(chosen.dtype_name)
    if options.name is not None:
        repository.checked_name(options.name)
    location = locate.asked_for(options)
    allocator.let_threads_sleep()
    gc.disable()  # what is imported stays; looking through it for what could go is a sixth of the time
    from . import checkpoint, console, export, report

    console.quiet_transformers()
    gc.freeze()
    gc.enable()
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
            options.keep,
            serving,
            options.typed,
            adapters=options.lora,
        )
    put(report.exported(exported, source))


def _package(options: argparse.Namespace) -> None:
    from . import console, onnx_directory, package, report
    from .triton_config import Serving

    console.quiet_transformers()
    source = onnx_directory.opened(options.directory)
    with console.Steps() as steps:
        packaged = package.package(
            source,
            options.repository,
            options.name or source.name,
            options.max_length,
            steps,
            options.evaluation_text,
            options.keep,
            Serving(options.instances, options.gpus, options.threads, options.step_cache),
            options.typed,
        )
    put(report.packaged(packaged, source))


def _serve(options: argparse.Namespace) -> int | None:
    from . import server, triton_options

    admin_key = triton_options.admin_key(os.environ) if options.restrict_admin else None
    return server.serve(
        options.repository,
        models=options.models,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        options=triton_options.ServerOptions(options.drain, admin_key, options.trace, options.trace_rate),
        say=say,
        show_log=options.show_log or options.debug,
    )


def _inspect(options: argparse.Namespace) -> None:
    from . import manifest, report

    folder = manifest.version_folder(options.model)
    found = manifest.read(folder)
    if options.graph:
        from . import operator_counts

        put(operator_counts.counted(folder, found))
    else:
        put(found.to_json().rstrip() if options.json else report.inspected(folder, found))


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "sample": _sample,
    "export": _export,
    "package": _package,
    "serve": _serve,
    "inspect": _inspect,
    **{
        name: command.run
        for name, command in (repository_commands.COMMANDS | client_commands.COMMANDS).items()
    },
}

if __name__ == "__main__":  # python -m gptport.cli, which some would guess
    from .__main__ import run

    run()
