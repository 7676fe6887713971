"""The errors of the client.

GptportError                 anything that can go wrong with a request; carries `request_id`
├── ConnectionError          the server cannot be reached, or the connection broke
├── ServerNotReady           the server is there, but it or the model is not (yet, or no longer) ready
├── ModelNotFound            the server has no such model
├── InvalidRequest           a value of the request is wrong; nothing was, or will be, generated
├── QueueFull                the server has more requests waiting than it takes; try again later
├── DeadlineExceeded         `timeout` passed
├── Cancelled                the request was cancelled: by closing the stream or the client, or by the server
├── ServerError              the server failed while it worked on the request
│   └── SequenceLost         the server dropped a sequence of the client's own loop; carries `confirmed`
└── ProtocolError            the server answered something that this client does not understand
"""

from __future__ import annotations


class GptportError(Exception):
    """Base of all errors of the client.

    Attributes:
        request_id: what the server's log calls the request; empty if none was sent.
    """

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(f"{message} [request {request_id}]" if request_id else message)
        self.request_id = request_id


class ConnectionError(GptportError):  # noqa: A001 - the public name; use it as gptport_client.ConnectionError
    """The server cannot be reached, or the connection broke."""


class ServerNotReady(GptportError):  # noqa: N818 - named for what it says, as are the others
    """The server is there, but it or the model is not ready."""


class ModelNotFound(GptportError):  # noqa: N818
    """The server has no such model."""


class InvalidRequest(GptportError):  # noqa: N818
    """A value of the request is wrong."""


class QueueFull(GptportError):  # noqa: N818
    """The server has more requests waiting than it takes."""


class DeadlineExceeded(GptportError):  # noqa: N818
    """The timeout passed."""


class Cancelled(GptportError):  # noqa: N818
    """The request was cancelled."""


class ServerError(GptportError):
    """The server failed while it worked on the request."""


class SequenceLost(ServerError):  # noqa: N818
    """The server no longer has a sequence, because it idled too long, or the server or the model was started again.

    Attributes:
        confirmed: tokens that the sequence had; `resume()` of its session computes them again.
    """

    def __init__(self, message: str, request_id: str = "", confirmed: int = 0) -> None:
        super().__init__(message, request_id)
        self.confirmed = confirmed


class ProtocolError(GptportError):
    """The server answered something that this client does not understand."""
