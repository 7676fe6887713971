"""What a server's complaint means: gRPC status and text in, one of our errors out. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptport_client._errors import (
    Cancelled,
    ConnectionError,  # noqa: A004 - ours
    DeadlineExceeded,
    GptportError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    QueueFull,
    ServerError,
    ServerNotReady,
)
from gptport_client._wire import PARAMETER_TENSORS

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Origin:
    """Where a request went: what an error message names."""

    url: str
    model: str = ""
    request_id: str = ""


# Triton reports many things as UNAVAILABLE or NOT_FOUND that are not; and an error inside a stream is a text
# without any status. So texts come first; the first match decides.
_TEXTS: Sequence[tuple[re.Pattern[str], type[GptportError]]] = tuple(
    (re.compile(pattern, re.IGNORECASE), error)
    for pattern, error in (
        (r"exceeds maximum queue size|queue is full|queue full", QueueFull),
        (
            r"has no available versions|not ready|not yet ready|shutting down|is exiting|unloading",
            ServerNotReady,
        ),
        (r"unknown model", ModelNotFound),
        (r"protocol is restricted", InvalidRequest),
        (r"stream removed", ConnectionError),  # a proxy's way to end a stream whose server is gone
        (r"timeout expired|deadline exceeded", DeadlineExceeded),
        (r"message larger than max|doesn't support models with decoupled", ProtocolError),
    )
)

# gRPC's words for a stream that the other side reset. Proxies do so when the server behind them is gone; the code of the reset,
# which decides the status, says nothing: HAProxy's is CANCEL, where nobody has cancelled.
_RESET = re.compile(r"received RST_STREAM", re.IGNORECASE)

# Only where there is no status: the backend's messages begin with the field, Triton's own speak of inference
# inputs.
_FIELDS = "|".join(
    [
        "text_input",
        "input_ids",
        "messages",
        "chat_template_kwargs",
        "stream",
        r"exclude_input\w*",
        "timeout",
        "file",
    ]
    + [name for tensors in PARAMETER_TENSORS.values() for name, _ in tensors]
)
_REFUSALS = re.compile(
    rf"^\W*(?:invalid.argument|(?:the )?prompt|the request has|this model has no|{_FIELDS})\b"
    r"|is not an input of this model|inference input|expected \d+ inputs",
    re.IGNORECASE,
)
_CANCELLATION = re.compile(
    r"^\W*(?:the )?(?:request|stream)?\W*(?:was |is |has been )?cancell?ed", re.IGNORECASE
)

_STATUSES: dict[str, type[GptportError]] = {
    "CANCELLED": Cancelled,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "RESOURCE_EXHAUSTED": QueueFull,
    "UNAVAILABLE": ConnectionError,
    "UNIMPLEMENTED": ProtocolError,
}

_HTTP_STATUSES: dict[int, type[GptportError]] = {
    400: InvalidRequest,
    401: InvalidRequest,
    403: InvalidRequest,
    404: ModelNotFound,
    408: DeadlineExceeded,
    413: InvalidRequest,
    429: QueueFull,
    499: Cancelled,
    501: ProtocolError,
    502: ConnectionError,
    503: ServerNotReady,
    504: DeadlineExceeded,
}

_MEANING: dict[type[GptportError], str] = {
    Cancelled: "the request was cancelled: {text}",
    ConnectionError: "no connection to {url}: {text}; is the server up, and is this its port (8001 for gRPC, 8000 for HTTP)?",
    DeadlineExceeded: "no answer from {url} in time: {text}; give a longer timeout or fewer max_tokens",
    InvalidRequest: "the server refused the request: {text}",
    ModelNotFound: "{url} has no model {model!r}: {text}; models() lists those it has",
    ProtocolError: "{url} does not answer as gptport's models do: {text}; check the URL and the model's name",
    QueueFull: "{url} has too many requests waiting: {text}; try again later",
    ServerError: "the server failed on model {model!r}: {text}; its log says more",
    ServerNotReady: "{url} has {model!r} not ready: {text}; wait_until_ready() waits, its log says more",
}


def error_from_status(status: str, text: str, origin: Origin) -> GptportError:
    """The error for a gRPC status (its name, such as `UNAVAILABLE`) and its details."""
    if status != "DEADLINE_EXCEEDED" and _RESET.search(text):
        kind: type[GptportError] = ConnectionError
    elif status in {"UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNKNOWN"}:
        kind = _kind_of_text(text) or _STATUSES.get(status, ServerError)
    else:
        kind = _STATUSES.get(status, ServerError)
    return _error(kind, text, origin)


def error_from_http(status: int, text: str, origin: Origin) -> GptportError:
    """The error for an HTTP status and the text that came with it."""
    kind = _kind_of_text(text) or _HTTP_STATUSES.get(status, ServerError)
    return _error(kind, text or f"HTTP status {status}", origin)


def error_from_text(text: str, origin: Origin) -> GptportError:
    """The error for the `error_message` of a Triton stream, which has no status."""
    kind = _kind_of_text(text)
    if kind is None and _REFUSALS.search(text):
        kind = InvalidRequest
    if kind is None and _CANCELLATION.search(text):
        kind = Cancelled
    return _error(kind or ServerError, text, origin)


def _kind_of_text(text: str) -> type[GptportError] | None:
    return next((error for pattern, error in _TEXTS if pattern.search(text)), None)


def _error(kind: type[GptportError], text: str, origin: Origin) -> GptportError:
    message = _MEANING[kind].format(url=origin.url, model=origin.model, text=text.strip() or "no details")
    return kind(message, origin.request_id)
