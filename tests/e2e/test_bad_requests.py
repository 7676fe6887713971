"""Wrong requests, past the client's own checks, are answered with what is wrong; others do not notice."""

from __future__ import annotations

import queue
import threading

import numpy as np
import pytest
import tritonclient.grpc as grpc

from serve_command import PATIENCE

LONG = 160
TYPES = {
    "text_input": ("BYTES", np.object_),
    "stop_words": ("BYTES", np.object_),
    "input_ids": ("INT32", np.int32),
    "max_tokens": ("INT32", np.int32),
    "top_k": ("INT32", np.int32),
    "temperature": ("FP32", np.float32),
    "top_p": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
}

TEXT = {"text_input": [b"Hello"]}
WRONG = {
    "negative max_tokens": ({**TEXT, "max_tokens": [-1]}, "max_tokens.*-1"),
    "max_tokens 0": ({**TEXT, "max_tokens": [0]}, "max_tokens.*0"),
    "two max_tokens": ({**TEXT, "max_tokens": [1, 2]}, "max_tokens"),
    "top_p 2": ({**TEXT, "top_p": [2.0]}, "top_p.*2"),
    "top_p not a number": ({**TEXT, "top_p": [float("nan")]}, "top_p.*nan"),
    "negative temperature": ({**TEXT, "temperature": [-0.5]}, "temperature.*-0.5"),
    "infinite temperature": ({**TEXT, "temperature": [float("inf")]}, "temperature.*inf"),
    "negative top_k": ({**TEXT, "top_k": [-3]}, "top_k.*-3"),
    "an empty stop word": ({**TEXT, "stop_words": [b"x", b""]}, "stop_words"),
    "a stop word that is not UTF-8": ({**TEXT, "stop_words": [b"\xff"]}, "stop_words.*UTF-8"),
    "a prompt that is not UTF-8": ({"text_input": [b"caf\xe9"]}, "text_input.*UTF-8"),
    "an empty prompt": ({"text_input": [b""]}, "text_input.*empty"),
    "no prompt": ({"max_tokens": [3]}, "text_input"),
    "two prompts": ({**TEXT, "input_ids": [1]}, "text_input.*input_ids"),
    "no ids": ({"input_ids": []}, "input_ids"),
    "an id beyond the vocabulary": ({"input_ids": [10_000_000]}, "input_ids.*10000000"),
    "a negative id": ({"input_ids": [-1]}, "input_ids.*-1"),
    "a prompt that is too long": ({"text_input": [b"hello " * 3000]}, "2048"),
    "a prompt that is much too long": ({"text_input": [b"hello " * 500_000]}, "2048"),
    "a temperature that is an integer": ({**TEXT, "temperature": ("INT32", np.int32, [1])}, "temperature"),
    "an unknown input": ({**TEXT, "colour": ("INT32", np.int32, [1])}, "colour"),
    "a file that is not shared": ({"parameters": {"file": "../config.pbtxt"}}, "file"),
}


def tensors(inputs: dict) -> list[grpc.InferInput]:
    result = []
    for name, values in inputs.items():
        dtype, kind, items = values if isinstance(values, tuple) else (*TYPES[name], values)
        tensor = grpc.InferInput(name, [len(items)], dtype)
        tensor.set_data_from_numpy(np.array(items, kind))
        result.append(tensor)
    return result


@pytest.fixture
def send(server):
    """Send a request as it is; its error."""
    connection = grpc.InferenceServerClient(server.address.grpc_url)
    answers: queue.Queue = queue.Queue()
    connection.start_stream(lambda result, error: answers.put((result, error)))

    def ask(inputs: dict, model: str = "smollm2") -> Exception | None:
        given = {name: value for name, value in inputs.items() if name != "parameters"}
        connection.async_stream_infer(model, tensors(given), parameters=inputs.get("parameters"))
        return answers.get(timeout=PATIENCE)[1]

    yield ask
    connection.stop_stream(cancel_requests=True)
    connection.close()


@pytest.fixture(scope="module")
def in_flight(server):
    """A stream that runs while all wrong requests of this module come; at the end it must be as if it had been alone."""
    from gptport_client import Client

    texts: list[str] = []
    ends = threading.Event()

    def generate() -> None:
        with Client(server.address.grpc_url, model="smollm2") as client:
            while not ends.is_set():
                texts.append(client.generate("Once upon a time", max_tokens=LONG).text)

    with Client(server.address.grpc_url, model="smollm2") as client:
        alone = client.generate("Once upon a time", max_tokens=LONG).text
    thread = threading.Thread(target=generate)
    thread.start()
    yield
    ends.set()
    thread.join()
    assert set(texts) == {alone}


@pytest.mark.usefixtures("in_flight")
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_is_answered_with_what_is_wrong(send, case):
    inputs, message = WRONG[case]
    error = send(inputs)
    assert isinstance(error, grpc.InferenceServerException)
    with pytest.raises(grpc.InferenceServerException, match=rf"(?is).*{message}"):
        raise error
    assert "Traceback" not in str(error)


def test_a_right_request_passes(send):
    assert (
        send({**TEXT, "max_tokens": [2], "top_p": [0.5], "stop_words": [b"\n"], "seed": [2**64 - 1]}) is None
    )


def test_an_unknown_model(send):
    error = send(TEXT, model="nobody")
    assert "nobody" in str(error)
