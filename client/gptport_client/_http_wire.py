"""Requests and responses of the gRPC service as Triton's HTTP endpoints have them. Pure.

Triton's documentation calls them the generate extension and the binary tensor data extension.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
from tritonclient.grpc import service_pb2

from gptport_client._errors import ProtocolError
from gptport_client._message import NUMPY_TYPES, InferRequest, InferResponse
from gptport_client._wire import OPTIONAL_OUTPUTS, OUTPUT_DATATYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

LENGTH_HEADER = "Inference-Header-Content-Length"


def generate_body(request: InferRequest) -> bytes:
    """The JSON of `/generate_stream`: a key for each tensor and each parameter."""
    body: dict[str, Any] = {"id": request.id}
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        values = _values(tensor.datatype, content)
        body[tensor.name] = values[0] if list(tensor.shape) == [1] and tensor.name not in _LISTS else values
    for name in request.parameters.keys() - {"triton_enable_empty_final_response"}:
        body[name] = _parameter(request.parameters[name])
    return json.dumps(body).encode()


# One value of these is still a list.
_LISTS = frozenset(
    (
        "input_ids",
        "stop_words",
        "bad_words",
        "choice",
        "stop_token_ids",
        "logit_bias_ids",
        "logit_bias_values",
    )
)


def infer_body(request: InferRequest) -> tuple[bytes, dict[str, str]]:
    """The body of `/infer`, a JSON head with the tensors' bytes behind it, and the headers that say so."""
    contents = iter(request.raw_input_contents)
    inputs = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            # What lies in shared memory has no content here.
            "parameters": _parameters(tensor) or {"binary_data_size": len(next(contents))},
        }
        for tensor in request.inputs
    ]
    outputs = [
        {"name": tensor.name, "parameters": _parameters(tensor) or {"binary_data": True}}
        for tensor in request.outputs
    ]
    parameters = {**_parameters(request), "binary_data_output": True}
    head = {"id": request.id, "parameters": parameters, "inputs": inputs}
    text = json.dumps({**head, "outputs": outputs} if outputs else head).encode()
    headers = {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join((text, *request.raw_input_contents)), headers


def read_infer(body: bytes, head_length: int) -> InferResponse:
    """The response of `/infer`, whose first `head_length` bytes are JSON.

    Raises:
        ProtocolError: it is something else.
    """
    response = service_pb2.ModelInferResponse()
    try:
        place = head_length
        for output in json.loads(body[:head_length])["outputs"]:
            if output.keys() == {"name", "datatype", "shape"}:  # it is in shared memory
                continue
            size = output["parameters"]["binary_data_size"]
            _add(response, output["name"], output["datatype"], output["shape"], body[place : place + size])
            place += size
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"the server's answer is not Triton's: {error!r}; check the URL") from error
    return response


def read_event(event: Mapping[str, Any]) -> InferResponse:
    """An event of `/generate_stream`.

    Raises:
        ProtocolError: it is something else.
    """
    response = service_pb2.ModelInferResponse()
    for name, datatype in OUTPUT_DATATYPES.items():
        if name in OPTIONAL_OUTPUTS and name not in event:
            continue
        value = event.get(name, [])  # Triton leaves out what is empty
        values = value if isinstance(value, list) else [value]
        try:
            content = _packed(datatype, values)
        except (ValueError, TypeError, OverflowError, AttributeError) as error:
            raise ProtocolError(f"the output {name} is {value!r}, which is no {datatype}") from error
        _add(response, name, datatype, [len(values)], content)
    return response


def _add(response: InferResponse, name: str, datatype: str, shape: list[int], content: bytes) -> None:
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(content)


def _values(datatype: str, content: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(content, NUMPY_TYPES[datatype]).tolist())
    values, place = [], 0
    while place < len(content):
        end = place + 4 + struct.unpack_from("<I", content, place)[0]
        values.append(content[place + 4 : end].decode())
        place = end
    return values


def _packed(datatype: str, values: list[Any]) -> bytes:
    if datatype != "BYTES":
        return np.asarray(values, NUMPY_TYPES[datatype]).tobytes()
    encoded = [value.encode() for value in values]
    return b"".join(struct.pack("<I", len(value)) + value for value in encoded)


def _parameters(message: Any) -> dict[str, Any]:
    return {name: _parameter(message.parameters[name]) for name in message.parameters}


def _parameter(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice"))
