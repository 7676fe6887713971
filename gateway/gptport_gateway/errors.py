"""What goes wrong, as OpenAI's clients expect to be told."""

from __future__ import annotations

from typing import Any

import gptport_client as client

# Kind of error → HTTP status and OpenAI's type of error; the first that fits.
_STATUSES: tuple[tuple[type[client.GptportError], int, str], ...] = (
    (client.InvalidRequest, 400, "invalid_request_error"),
    (client.ModelNotFound, 404, "invalid_request_error"),
    (client.QueueFull, 429, "rate_limit_error"),
    (client.ServerNotReady, 503, "server_error"),
    (client.ConnectionError, 503, "server_error"),
    (client.Cancelled, 503, "server_error"),
    (client.DeadlineExceeded, 504, "server_error"),
    (client.GptportError, 500, "server_error"),
)


class RequestError(Exception):
    """The gateway refuses a request.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, if it is one.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def status_and_body(error: RequestError | client.GptportError) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the JSON object for an error."""
    if isinstance(error, RequestError):
        return error.status, _body(str(error), "invalid_request_error", error.param)
    status, kind = next((status, kind) for of, status, kind in _STATUSES if isinstance(error, of))
    return status, _body(str(error), kind, None)


def _body(message: str, kind: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}
