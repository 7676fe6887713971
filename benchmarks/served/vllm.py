"""vLLM: its OpenAI-compatible server on the CPU, with its defaults; streams as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING

from benchmarks import environment
from benchmarks.environment import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.peers.job import Job

_READY_SECONDS = 600.0  # it compiles the model first
VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CACHE_ROOT": str(CACHE / "models" / "vllm"),
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GB; a choice of its own would take half of the memory
    "VLLM_NO_USAGE_STATS": "1",
}


@contextlib.contextmanager
def running(job: Job, variables: Mapping[str, str] = VARIABLES) -> Iterator[int]:
    """The server, ready; gives its port."""
    port = _free_port()
    python = environment.python("vllm")
    openmp = {"LD_PRELOAD": str(python.parents[1] / "lib" / "libiomp5.so")}  # as its installation page says
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server"]
    options = [f"--model={job.checkpoint}", "--served-model-name=model", "--dtype=float32"]
    where = ["--host=127.0.0.1", f"--port={port}", "--max-model-len=2048", "--disable-uvicorn-access-log"]
    server = subprocess.Popen(
        [*command, *options, *where], env={**os.environ, **openmp, **variables}, start_new_session=True
    )
    try:
        _wait_until_ready(server, port)
        yield port
    finally:
        server.terminate()
        try:
            server.wait(20)
        finally:
            with contextlib.suppress(ProcessLookupError):  # its engine is a process of its own
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _free_port() -> int:
    with socket.socket() as item:
        item.bind(("127.0.0.1", 0))
        return int(item.getsockname()[1])


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _READY_SECONDS
    while server.poll() is None and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"vLLM is not ready; its exit code is {server.poll()}")


async def ask(port: int, prompt: Sequence[int], new_tokens: int, emit: Callable[[int], None]) -> None:
    """Stream a completion; an event has one token, unless the server could not keep up with itself."""
    body = json.dumps(
        {
            "model": "model",
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\n\r\n".encode() + body)
    async for line in reader:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            if "choices" not in event:
                raise RuntimeError(f"vLLM refused: {line.decode()}")
            emit(len(event["choices"][0]["token_ids"] or ()))
    writer.close()


def step_seconds(_: int) -> dict[str, float]:
    """vLLM does not say."""
    return {}
