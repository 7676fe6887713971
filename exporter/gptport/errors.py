"""The errors of the exporter and the command.

GptportError                 anything that the user can read and act on; the command prints it in one line, exit 1
├── UsageError               a value on the command line is wrong (exit 2)
├── CheckpointError          the checkpoint cannot be read, or is not one
├── UnsupportedModel         the architecture has something that cannot be exported exactly
├── VerificationError        the exported graph does not compute what the checkpoint computes
├── RepositoryError          the model repository is not ours, or is damaged
├── DownloadError            a sample cannot be fetched, or is not what was expected
└── ServerError              tritonserver cannot be found, started, or has ended
"""

from __future__ import annotations


class GptportError(Exception):
    """Base of all errors that carry a message for the user."""


class UsageError(GptportError):
    """A value on the command line is wrong; the command exits with 2."""


class CheckpointError(GptportError):
    """The checkpoint cannot be read, or is not one."""


class UnsupportedModel(GptportError):  # noqa: N818 - named for what it says
    """The architecture has something that cannot be exported exactly."""


class VerificationError(GptportError):
    """The exported graph does not compute what the checkpoint computes."""


class RepositoryError(GptportError):
    """The model repository is not ours, or is damaged."""


class DownloadError(GptportError):
    """A sample cannot be fetched, or is not what was expected."""


class ServerError(GptportError):
    """tritonserver cannot be found, started, or has ended."""


def first_line(error: Exception) -> str:
    """What a foreign error says first, for a message of ours."""
    return str(error).strip().split("\n")[0][:300]
