"""The client library: generate text on a Triton that serves a model which gptport exported.

from gptport_client import Client

with Client("localhost:8001", model="smollm2") as client:
    print(client.generate("The capital of France is", max_tokens=16).text)
"""

from gptport_client._client import Client, Loop
from gptport_client._errors import (
    Cancelled,
    ConnectionError,  # noqa: A004 - ours; catch it as gptport_client.ConnectionError
    DeadlineExceeded,
    GptportError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerNotReady,
)
from gptport_client._model import ModelInfo
from gptport_client._params import SamplingParams
from gptport_client._prompt import Prompt
from gptport_client._results import Chunk, FinishReason, Result, Timings, Usage
from gptport_client._stream import Stream
from gptport_client._transport import Call, Transport

__all__ = [
    "Call",
    "Cancelled",
    "Chunk",
    "Client",
    "ConnectionError",
    "DeadlineExceeded",
    "FinishReason",
    "GptportError",
    "InvalidRequest",
    "Loop",
    "ModelInfo",
    "ModelNotFound",
    "Prompt",
    "ProtocolError",
    "QueueFull",
    "Result",
    "SamplingParams",
    "ServerError",
    "ServerNotReady",
    "Stream",
    "Timings",
    "Transport",
    "Usage",
]
