"""The errors of the backend.

BackendError             anything that the user or the client can read and act on
├── LoadError            the model cannot be loaded; the message becomes Triton's status of the model
├── RequestError         the request is wrong; answered with status INVALID_ARGUMENT
├── Unavailable          the engine takes no requests now; answered with status UNAVAILABLE
└── NothingToChoose      no token is left for an answer, which ends with the message
"""

from __future__ import annotations


class BackendError(Exception):
    """Base of all errors that carry a message for the user."""


class LoadError(BackendError):
    """The model cannot be loaded."""


class RequestError(BackendError):
    """A request is wrong: the message names the field, the value, the limit and what to do."""


class Unavailable(BackendError):  # noqa: N818 - named after the status it becomes
    """The engine takes no requests now."""


class NothingToChoose(BackendError):  # noqa: N818 - it is what it says
    """What a request asks for, or the model's logits, leave no token for an answer."""
