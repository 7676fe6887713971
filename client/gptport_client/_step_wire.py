"""Requests to and responses from the step model, as docs/protocol.md has them. Pure."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from tritonclient.grpc import service_pb2

from gptport_client._errors import ProtocolError
from gptport_client._message import add_tensor, content_of, new_request, outputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._model import CacheLayout
    from gptport_client._sampling import Logits

_FLOATS = {"FP32": "<f4", "FP16": "<f2"}


def step_request(
    model: str,
    request_id: str,
    sequence_id: int,
    token_ids: Sequence[int],
    past: int,
    *,
    start: bool,
    end: bool,
) -> InferRequest:
    """Ask the step model to append `token_ids` to a sequence that has `past` tokens."""
    request = new_request(model, request_id)
    _add_step(request, token_ids, past)
    request.parameters["sequence_id"].int64_param = sequence_id
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


def with_cache(model: str, request_id: str, layout: CacheLayout, region: str, length: int) -> InferRequest:
    """What all requests of a sequence whose keys and values lie in a region have in common: a template for `kv_request`.

    Each output has the place of its input, so that what a step adds is there for the next.
    """
    request = new_request(model, request_id)
    request.outputs.add(name="logits")
    shape = (1, layout.heads, length, layout.head_dim)
    size = layout.bytes(length) // len(layout.tensors)
    for number, (past, present) in enumerate(layout.tensors):
        for tensor in (
            request.inputs.add(name=past, datatype=layout.datatype, shape=shape),
            request.outputs.add(name=present),
        ):
            tensor.parameters["shared_memory_region"].string_param = region
            tensor.parameters["shared_memory_byte_size"].int64_param = size
            tensor.parameters["shared_memory_offset"].int64_param = number * size
    return request


def kv_request(template: InferRequest, token_ids: Sequence[int], past: int) -> InferRequest:
    """Ask the step model without state to append `token_ids` to the `past` tokens whose keys and values the client holds."""
    request = service_pb2.ModelInferRequest()
    request.CopyFrom(template)
    _add_step(request, token_ids, past)
    return request


def growing_request(
    model: str,
    request_id: str,
    layout: CacheLayout,
    token_ids: Sequence[int],
    past: int,
    cache: Sequence[NDArray[np.generic]],
) -> InferRequest:
    """Ask the step model whose cache grows to append `token_ids` to `past` tokens.

    `cache` has an array `[1, heads, past, head_dim]` for each of the layout's tensors.
    """
    request = new_request(model, request_id)
    count = len(token_ids)
    others = {
        "input_ids": ("INT64", (1, count), np.asarray(token_ids, "<i8")),
        "position_ids": ("INT64", (1, count), np.arange(past, past + count, dtype="<i8")),
        "attention_mask": ("INT64", (1, past + count), np.ones(past + count, "<i8")),
        "use_cache_branch": ("BOOL", (1,), np.array([past > 0])),
        "num_logits_to_keep": ("INT64", (1,), np.array([1], "<i8")),
    }
    for name in layout.inputs:
        datatype, shape, values = others[name]
        add_tensor(request, name, datatype, shape, values.tobytes())
    for (name, _), array in zip(layout.tensors, cache, strict=True):
        add_tensor(request, name, layout.datatype, array.shape, array.tobytes())
    return request


def read_logits(response: InferResponse, vocab_size: int) -> Logits:
    """The logits in a response of the step model: `[vocab]`, float32.

    Raises:
        ProtocolError: there are none, or they are of another type or length.
    """
    data = content_of(outputs_of(response), "logits", "FP32")
    if len(data) != 4 * vocab_size:
        raise ProtocolError(
            f"the step model answered {len(data)} bytes of logits, not {vocab_size} numbers of 4 bytes"
        )
    return np.frombuffer(data, "<f4")


def read_growing(
    response: InferResponse, layout: CacheLayout, vocab_size: int, length: int
) -> tuple[Logits, tuple[NDArray[np.generic], ...]]:
    """What the step model whose cache grows answered: the logits `[vocab]` behind the last token, float32, and the cache.

    Raises:
        ProtocolError: something is missing, or of another type or size than `length` tokens have.
    """
    outputs = outputs_of(response)
    datatype, data = outputs.get("logits", ("missing", b""))
    rows = np.frombuffer(data, _FLOATS[datatype]) if datatype in _FLOATS else np.zeros(0, "<f4")
    if not rows.size or rows.size % vocab_size:
        raise ProtocolError(
            f"the step model answered logits {datatype} of {len(data)} bytes, not rows of {vocab_size} numbers"
        )
    size = layout.bytes(length) // len(layout.tensors)
    cache = []
    for _, name in layout.tensors:
        data = content_of(outputs, name, layout.datatype)
        if len(data) != size:
            raise ProtocolError(
                f"the step model answered {len(data)} bytes of {name}; {length} tokens have {size}"
            )
        values = np.frombuffer(data, f"<u{layout.width // layout.head_dim}")
        cache.append(values.reshape(1, layout.heads, length, layout.head_dim))
    return rows[-vocab_size:].astype("<f4"), tuple(cache)


def _add_step(request: InferRequest, token_ids: Sequence[int], past: int) -> None:
    count = len(token_ids)
    add_tensor(request, "input_ids", "INT64", (1, count), np.asarray(token_ids, "<i8").tobytes())
    add_tensor(
        request, "position_ids", "INT64", (1, count), np.arange(past, past + count, dtype="<i8").tobytes()
    )
    add_tensor(request, "seqlens_k", "INT32", (1, 1), struct.pack("<i", past + count - 1))
