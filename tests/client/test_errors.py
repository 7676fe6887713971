"""What a status or a text means, and what every message has in it."""

from __future__ import annotations

import builtins
import inspect
import subprocess
import sys

import pytest

import gptport_client
from gptport_client import _errors
from gptport_client._status import Origin, error_from_status, error_from_text

ORIGIN = Origin("host:1", "toy", "7f")


@pytest.mark.parametrize(
    ("status", "text", "name"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", "ConnectionError"),
        ("UNAVAILABLE", "Socket closed", "ConnectionError"),
        ("UNAVAILABLE", "Exceeds maximum queue size", "QueueFull"),
        ("UNAVAILABLE", "the queue is full", "QueueFull"),
        ("UNAVAILABLE", "Request for unknown model: 'toy' has no available versions", "ServerNotReady"),
        ("NOT_FOUND", "Request for unknown model: 'toy' has no available versions", "ServerNotReady"),
        ("NOT_FOUND", "Request for unknown model: 'toy' is not found", "ModelNotFound"),
        ("UNAVAILABLE", "Request timeout expired", "DeadlineExceeded"),
        ("UNAVAILABLE", "Server is shutting down", "ServerNotReady"),
        ("INVALID_ARGUMENT", "max_tokens is 0", "InvalidRequest"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "DeadlineExceeded"),
        ("DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)", "DeadlineExceeded"),
        ("DEADLINE_EXCEEDED", "Received RST_STREAM with error code 8", "DeadlineExceeded"),
        ("CANCELLED", "Received RST_STREAM with error code 8", "ConnectionError"),
        ("CANCELLED", "Stream removed (CANCELLED)", "Cancelled"),
        ("CANCELLED", "Locally cancelled by application!", "Cancelled"),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (5 vs. 4)", "ProtocolError"),
        ("UNIMPLEMENTED", "", "ProtocolError"),
        ("INTERNAL", "the queue is full of bugs", "ServerError"),
        ("UNKNOWN", "", "ServerError"),
        ("DATA_LOSS", "x", "ServerError"),
    ],
)
def test_a_status_becomes_a_typed_error(status, text, name):
    error = error_from_status(status, text, ORIGIN)
    assert type(error) is getattr(gptport_client, name)
    assert error.request_id == "7f"
    assert "7f" in str(error)
    assert (text or "no details") in str(error)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("input_ids has the id 70000; the vocabulary ends at 49151", "InvalidRequest"),
        ("the request has no prompt; send exactly one of text_input, input_ids, messages", "InvalidRequest"),
        ("foo is not an input of this model; it takes text_input", "InvalidRequest"),
        ("unexpected inference input 'foo' for model 'toy'", "InvalidRequest"),
        ("Non-zero status code returned while running Gather: input_ids out of bounds", "ServerError"),
        ("Request for unknown model: 'toy' is not found", "ModelNotFound"),
        ("cancelled", "Cancelled"),
        ("", "ServerError"),
    ],
)
def test_a_text_without_a_status_becomes_a_typed_error(text, name):
    assert type(error_from_text(text, ORIGIN)) is getattr(gptport_client, name)


def test_the_tree_in_the_docstring_is_the_tree():
    classes = [
        thing
        for _, thing in inspect.getmembers(_errors, inspect.isclass)
        if thing.__module__ == _errors.__name__
    ]
    drawn = {line.lstrip("│├└─ ").split()[0] for line in _errors.__doc__.splitlines()[2:]}
    assert drawn == {thing.__name__ for thing in classes}
    assert all(getattr(gptport_client, thing.__name__) is thing for thing in classes)
    assert not issubclass(gptport_client.ConnectionError, builtins.ConnectionError)


def test_all_names_are_there_and_public():
    assert all(hasattr(gptport_client, name) for name in gptport_client.__all__)
    modules = {name for name, value in vars(gptport_client).items() if inspect.ismodule(value)}
    assert all(name.startswith("_") for name in modules)


def test_importing_takes_nothing_heavy():
    code = "import sys, gptport_client; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not loaded & {
        "torch",
        "transformers",
        "onnxruntime",
        "onnx",
        "tokenizers",
        "gptport",
        "gptport_backend",
    }
