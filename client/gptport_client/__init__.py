"""The client library: generate text on a Triton that serves a model which gptport exported.

from gptport_client import Client

with Client("localhost:8001", model="smollm2") as client:
    print(client.generate("The capital of France is", max_tokens=16).text)
"""

from gptport_client._async_client import AsyncClient
from gptport_client._beam_search import Beam
from gptport_client._client import Client
from gptport_client._core import Loop
from gptport_client._endpoint import TLS
from gptport_client._errors import (
    Cancelled,
    ConnectionError,  # noqa: A004 - ours; catch it as gptport_client.ConnectionError
    DeadlineExceeded,
    GptportError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    SequenceLost,
    ServerError,
    ServerNotReady,
)
from gptport_client._many import Outcome, Request
from gptport_client._metrics import Metrics, Sample
from gptport_client._model import ModelConfig, ModelInfo
from gptport_client._params import SamplingParams
from gptport_client._processors import Processor, from_transformers
from gptport_client._prompt import Message, Prompt
from gptport_client._results import Chunk, FinishReason, Result, Timings, TokenLogprob, Usage
from gptport_client._retry import Retry
from gptport_client._score import Score
from gptport_client._served import StepTransport
from gptport_client._session import AsyncSession, Session
from gptport_client._stream import AsyncStream, Stream
from gptport_client._text import TextOffsets
from gptport_client._transport import AsyncCall, AsyncTransport, Call, Transport

__all__ = [
    "TLS",
    "AsyncCall",
    "AsyncClient",
    "AsyncSession",
    "AsyncStream",
    "AsyncTransport",
    "Beam",
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
    "Message",
    "Metrics",
    "ModelConfig",
    "ModelInfo",
    "ModelNotFound",
    "Outcome",
    "Processor",
    "Prompt",
    "ProtocolError",
    "QueueFull",
    "Request",
    "Result",
    "Retry",
    "Sample",
    "SamplingParams",
    "Score",
    "SequenceLost",
    "ServerError",
    "ServerNotReady",
    "Session",
    "StepTransport",
    "Stream",
    "TextOffsets",
    "Timings",
    "TokenLogprob",
    "Transport",
    "Usage",
    "from_transformers",
]
