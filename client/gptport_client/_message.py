"""Triton's messages: tensors into a request, and out of a response. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2

from gptport_client._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Protobuf messages of Triton's service; their module has no types.
InferRequest: TypeAlias = Any
InferResponse: TypeAlias = Any

NUMPY_TYPES = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "BOOL": "?"}


def new_request(model: str, request_id: str) -> InferRequest:
    """An empty request."""
    return service_pb2.ModelInferRequest(model_name=model, id=request_id)


def add_tensor(request: InferRequest, name: str, datatype: str, shape: Sequence[int], data: bytes) -> None:
    """Add an input whose content is `data`."""
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)


def add_values(request: InferRequest, name: str, datatype: str, values: Sequence[Any]) -> None:
    """Add an input of one dimension."""
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        data = b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    else:
        data = np.asarray(values, NUMPY_TYPES[datatype]).tobytes()
    add_tensor(request, name, datatype, (len(values),), data)


def outputs_of(response: InferResponse) -> dict[str, tuple[str, bytes]]:
    """Each output's datatype and content, by name.

    Raises:
        ProtocolError: their number is not that of the contents.
    """
    if len(response.outputs) != len(response.raw_output_contents):
        raise ProtocolError(
            f"a response has {len(response.outputs)} outputs, {len(response.raw_output_contents)} contents"
        )
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: (output.datatype, content) for output, content in pairs}


def content_of(outputs: dict[str, tuple[str, bytes]], name: str, datatype: str) -> bytes:
    """The content of one output.

    Raises:
        ProtocolError: it is missing, or of another datatype.
    """
    found, content = outputs.get(name, ("missing", b""))
    if found != datatype:
        raise ProtocolError(
            f"the output {name} is {found}, not {datatype}; this client needs a model of its version"
        )
    return content
