"""What the toy server reads of requests, and puts into answers."""

from __future__ import annotations

import struct

import numpy as np
from tritonclient.grpc import service_pb2

NUMBERS = {
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP32": "<f4",
    "FP16": "<f2",
    "BOOL": "?",
}


def read_inputs(request) -> dict:
    """The tensors of a request, by name; BYTES as a list of bytes."""
    tensors = {}
    sent = [tensor for tensor in request.inputs if "shared_memory_region" not in tensor.parameters]
    for tensor, content in zip(sent, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            value, rest = [], content
            while rest:
                end = 4 + struct.unpack_from("<I", rest)[0]
                value, rest = [*value, rest[4:end]], rest[end:]
            assert len(value) == tensor.shape[0]
        else:
            value = np.frombuffer(content, NUMBERS[tensor.datatype]).reshape(tensor.shape)
        tensors[tensor.name] = value
    return tensors


def text_response(
    request, text: bytes, ids, reason: str, prompt_tokens: int, new_tokens: int, *, final: bool, index=0
):
    """One response of the text model."""
    stream = service_pb2.ModelStreamInferResponse()
    response = stream.infer_response
    response.model_name, response.id = request.model_name, request.id
    response.parameters["triton_final_response"].bool_param = final
    for name, datatype, content in (
        ("text_output", "BYTES", struct.pack("<I", len(text)) + text),
        ("output_ids", "INT32", np.asarray(ids, "<i4").tobytes()),
        ("finish_reason", "BYTES", struct.pack("<I", len(reason)) + reason.encode()),
        ("num_input_tokens", "UINT32", struct.pack("<I", prompt_tokens)),
        ("num_output_tokens", "UINT32", struct.pack("<I", new_tokens)),
        ("index", "INT32", struct.pack("<i", index)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=(len(ids) if name == "output_ids" else 1,))
        response.raw_output_contents.append(content)
    return stream


def add_logprobs(response, top: int):
    """Of one token: made up, -1 for the chosen one, and -i for the i-th of the likeliest ones, which are the first ids."""
    add_output(response, "output_log_probs", "FP32", np.array([-1]))
    add_output(response, "top_log_prob_ids", "INT32", np.arange(top)[np.newaxis])
    add_output(response, "top_log_probs", "FP32", -np.arange(top)[np.newaxis])


def add_output(response, name: str, datatype: str, values: np.ndarray):
    """One more tensor of numbers."""
    response.outputs.add(name=name, datatype=datatype, shape=values.shape)
    response.raw_output_contents.append(values.astype(NUMBERS[datatype]).tobytes())


def final_response(request):
    """The empty response that only says that it is the last."""
    stream = service_pb2.ModelStreamInferResponse()
    stream.infer_response.id = request.id
    stream.infer_response.parameters["triton_final_response"].bool_param = True
    return stream


def failure(text: str):
    """An error inside a stream: Triton sends no status with it."""
    return service_pb2.ModelStreamInferResponse(error_message=text)
