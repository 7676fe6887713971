"""The whole way on a real model, as `make demo` runs it: fetch, export, serve, generate, stop.

A second run takes up what the first one left: the checkpoint and the exported model.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from gptport_client import Client

from . import cli, server
from .errors import GptportError
from .versions import versions

NAME = "smollm2"
CHECKPOINT = Path("checkpoints") / NAME
REPOSITORY = Path("model_repository")
QUESTION, ANSWER = "The capital of France, of course, is", "Paris"
PROMPTS = (QUESTION, "Once upon a time, there was a small robot who", "To make pancakes, you need")
MAX_TOKENS = 48


def main() -> int:
    """Run the demo; the exit code."""
    steps = [["sample", NAME, "-o", str(CHECKPOINT)]]
    if versions(REPOSITORY / NAME):
        _print(f"{REPOSITORY / NAME} is there already; remove it to export again.")
    else:
        precision = ["--precision", "fp16"] if _has_cuda() else []
        steps.append(["export", str(CHECKPOINT), "--repository", str(REPOSITORY), "--name", NAME, *precision])
    for arguments in steps:
        _print(f"\n$ gptport {' '.join(arguments)}")
        code = cli.main(arguments)
        if code:
            return code
    try:
        return _generate()
    except GptportError as error:
        sys.stderr.write(f"gptport: {error}\n")
        return cli.FAILURE


def _has_cuda() -> bool:
    """Whether onnxruntime can use a GPU here."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and Path("/dev/nvidia0").exists()


def _generate() -> int:
    _print(f"\nServing {REPOSITORY.resolve()} …")
    with (
        server.running(REPOSITORY, [NAME]) as running,
        Client(running.address.grpc_url, model=NAME) as client,
    ):
        texts = {prompt: _stream(client, prompt) for prompt in PROMPTS}
    _print("\nThe server is stopped. To carry on by hand:\n")
    _print("  . .venv/bin/activate")
    _print(f"  gptport serve {REPOSITORY}")
    _print(f'  gptport generate "{QUESTION}" --model {NAME}        # in another terminal')
    if ANSWER in texts[QUESTION]:
        return 0
    sys.stderr.write(f"gptport: {QUESTION!r} was not answered with {ANSWER!r}: {texts[QUESTION]!r}\n")
    return cli.FAILURE


def _stream(client: Client, prompt: str) -> str:
    """Print the text as it comes, then how fast it came; the text."""
    _print(f"\n{prompt}", end="")
    text, tokens, first = "", 0, 0.0
    for chunk in client.stream(prompt, max_tokens=MAX_TOKENS):
        now = time.monotonic()
        first = first or now
        tokens += len(chunk.token_ids)
        text += chunk.text
        _print(chunk.text, end="")
    seconds = time.monotonic() - first
    _print(f"\n  [{tokens} tokens, {(tokens - 1) / seconds:.1f} tokens a second]")
    return text


def _print(text: str, end: str = "\n") -> None:
    sys.stdout.write(text + end)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
