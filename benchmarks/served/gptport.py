"""gptport: `NAME` on a real Triton, over gRPC streaming."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from gptport import server
from gptport_client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from typing import Any

    from benchmarks.peers.job import Job
    from gptport.address import Address


@contextlib.contextmanager
def running(job: Job) -> Iterator[Address]:
    """A tritonserver with what was exported, ready; gives where it listens."""
    with server.running(job.folder, ["model"]) as started:
        yield started.address


async def ask(address: Address, prompt: Sequence[int], new_tokens: int, emit: Callable[[int], None]) -> None:
    """Stream an answer, on a connection of its own."""
    inputs = [
        _tensor("input_ids", "INT32", np.array(prompt, np.int32)),
        _tensor("max_tokens", "INT32", np.array([new_tokens], np.int32)),
        _tensor("ignore_eos", "BOOL", np.array([True])),
        _tensor("stream", "BOOL", np.array([True])),
    ]

    outputs = [InferRequestedOutput(name) for name in ("text_output", "output_ids", "finish_reason")]

    async def one() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "model", "inputs": inputs, "outputs": outputs}

    async with InferenceServerClient(address.grpc_url) as client:
        async for result, error in client.stream_infer(one()):
            if error is not None:
                raise error
            emit(len(result.as_numpy("output_ids")))
            if result.as_numpy("finish_reason")[0]:
                return


def _tensor(name: str, dtype: str, values: np.ndarray[Any, Any]) -> InferInput:
    tensor = InferInput(name, list(values.shape), dtype)
    tensor.set_data_from_numpy(values)
    return tensor


def step_seconds(address: Address) -> dict[str, float]:
    """Part of a step → seconds, from the metrics."""
    with Client(address.grpc_url, model="model", metrics_url=address.metrics_url) as client:
        samples = client.metrics().samples
    return {s.labels["part"]: s.value for s in samples if s.name == "gptport_step_seconds_total"}
