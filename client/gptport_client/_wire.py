"""Requests to and responses from the two models, as docs/protocol.md has them. Pure."""

from __future__ import annotations

import struct
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from tritonclient.grpc import service_pb2

from gptport_client._errors import ProtocolError
from gptport_client._results import Chunk, TokenLogprob, Usage, finish_reason
from gptport_client._score import Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._params import SamplingParams
    from gptport_client._prompt import CheckedPrompt
    from gptport_client._sampling import Logits

# Protobuf messages of Triton's service; their module has no types.
InferRequest: TypeAlias = Any
InferResponse: TypeAlias = Any


# Field of SamplingParams → the names and datatypes of its tensors.
PARAMETER_TENSORS = {
    "max_tokens": (("max_tokens", "INT32"),),
    "temperature": (("temperature", "FP32"),),
    "top_k": (("top_k", "INT32"),),
    "top_p": (("top_p", "FP32"),),
    "seed": (("seed", "UINT64"),),
    "stop": (("stop_words", "BYTES"),),
    "min_p": (("min_p", "FP32"),),
    "typical_p": (("typical_p", "FP32"),),
    "repetition_penalty": (("repetition_penalty", "FP32"),),
    "presence_penalty": (("presence_penalty", "FP32"),),
    "frequency_penalty": (("frequency_penalty", "FP32"),),
    "logit_bias": (("logit_bias_ids", "INT32"), ("logit_bias_values", "FP32")),
    "bad_words": (("bad_words", "BYTES"),),
    "stop_token_ids": (("stop_token_ids", "INT32"),),
    "min_tokens": (("min_tokens", "INT32"),),
    "ignore_eos": (("ignore_eos", "BOOL"),),
    "logprobs": (("logprobs", "INT32"),),
    "prompt_logprobs": (("prompt_logprobs", "INT32"),),
    "priority": (("priority", "INT32"),),
    "json_schema": (("json_schema", "BYTES"),),
    "regex": (("regex", "BYTES"),),
    "choice": (("choice", "BYTES"),),
    "grammar": (("grammar", "BYTES"),),
    "lora_name": (("lora_name", "BYTES"),),
}
NUMPY_TYPES = {"INT32": "<i4", "INT64": "<i8", "UINT32": "<u4", "UINT64": "<u8", "FP32": "<f4", "BOOL": "?"}
# What the text model answers with.
OUTPUT_DATATYPES = {
    "text_output": "BYTES",
    "output_ids": "INT32",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "output_log_probs": "FP32",
    "top_log_prob_ids": "INT32",
    "top_log_probs": "FP32",
    "prompt_ids": "INT32",
    "prompt_log_probs": "FP32",
    "prompt_top_log_prob_ids": "INT32",
    "prompt_top_log_probs": "FP32",
}
LOGPROB_OUTPUTS = ("output_log_probs", "top_log_prob_ids", "top_log_probs")
PROMPT_OUTPUTS = ("prompt_log_probs", "prompt_top_log_prob_ids", "prompt_top_log_probs")
OPTIONAL_OUTPUTS = ("prompt_ids", *LOGPROB_OUTPUTS, *PROMPT_OUTPUTS)  # there if they were asked for


def text_request(
    model: str, request_id: str, prompt: CheckedPrompt, params: SamplingParams, *, stream: bool
) -> InferRequest:
    """Ask the text model to continue a prompt. Parameters at their defaults are left out."""
    request = _request(model, request_id)
    if isinstance(prompt, str):
        _add_values(request, "text_input", "BYTES", (prompt,))
    else:
        _add_values(request, "input_ids", "INT32", prompt)
    for field in fields(params):
        value = getattr(params, field.name)
        if value != field.default:
            for (name, datatype), values in zip(PARAMETER_TENSORS[field.name], _columns(value), strict=True):
                _add_values(request, name, datatype, values)
    _add_values(request, "stream", "BOOL", (stream,))
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def file_request(model: str, request_id: str, file: str) -> InferRequest:
    """Ask the text model for one of its files."""
    request = _request(model, request_id)
    request.parameters["file"].string_param = file
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


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
    count = len(token_ids)
    request = _request(model, request_id)
    _add(request, "input_ids", "INT64", (1, count), np.asarray(token_ids, "<i8").tobytes())
    _add(request, "position_ids", "INT64", (1, count), np.arange(past, past + count, dtype="<i8").tobytes())
    _add(request, "seqlens_k", "INT32", (1, 1), struct.pack("<i", past + count - 1))
    request.parameters["sequence_id"].int64_param = sequence_id
    request.parameters["sequence_start"].bool_param = start
    request.parameters["sequence_end"].bool_param = end
    return request


def read_text(response: InferResponse) -> tuple[Chunk | None, bool]:
    """One response of the text model: its piece, if it carries one, and whether it is the last response.

    Raises:
        ProtocolError: it is not what docs/protocol.md describes.
    """
    flag = response.parameters.get("triton_final_response")  # [] would add the key
    final = flag is not None and flag.bool_param
    outputs = _outputs(response)
    if not outputs:
        return None, final
    reason = _read_string(outputs, "finish_reason")
    usage = Usage(_read_number(outputs, "num_input_tokens"), _read_number(outputs, "num_output_tokens"))
    chunk = Chunk(
        text=_read_string(outputs, "text_output"),
        token_ids=_read_ids(outputs),
        logprobs=_read_logprobs(outputs, LOGPROB_OUTPUTS, _read_ids(outputs)),
        prompt_score=_read_score(outputs),
        finish_reason=finish_reason(reason) if reason else None,
        usage=usage if reason else None,
    )
    return chunk, final


def read_file(response: InferResponse) -> bytes | None:
    """The file in a response to `file_request`; None if the response carries no data."""
    outputs = _outputs(response)
    return _read_bytes(outputs, "text_output") if outputs else None


def read_logits(response: InferResponse, vocab_size: int) -> Logits:
    """The logits in a response of the step model: `[vocab]`, float32.

    Raises:
        ProtocolError: there are none, or they are of another type or length.
    """
    data = _output(_outputs(response), "logits", "FP32")
    if len(data) != 4 * vocab_size:
        raise ProtocolError(
            f"the step model answered {len(data)} bytes of logits, not {vocab_size} numbers of 4 bytes"
        )
    return np.frombuffer(data, "<f4")


def _request(model: str, request_id: str) -> InferRequest:
    return service_pb2.ModelInferRequest(model_name=model, id=request_id)


def _add(request: InferRequest, name: str, datatype: str, shape: Sequence[int], data: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(data)


def _columns(value: Any) -> Sequence[Sequence[Any]]:
    """What goes into the tensors of a parameter: one column, or for pairs two."""
    if not isinstance(value, tuple):
        return [[value]]
    return list(zip(*value, strict=True)) if isinstance(value[0], tuple) else [value]


def _add_values(request: InferRequest, name: str, datatype: str, values: Sequence[Any]) -> None:
    if datatype == "BYTES":
        encoded = [value.encode() for value in values]
        data = b"".join(struct.pack("<I", len(value)) + value for value in encoded)
    else:
        data = np.asarray(values, NUMPY_TYPES[datatype]).tobytes()
    _add(request, name, datatype, (len(values),), data)


def _outputs(response: InferResponse) -> dict[str, tuple[str, bytes]]:
    """Each output's datatype and content, by name."""
    if len(response.outputs) != len(response.raw_output_contents):
        raise ProtocolError(
            f"a response has {len(response.outputs)} outputs, {len(response.raw_output_contents)} contents"
        )
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: (output.datatype, content) for output, content in pairs}


def _output(outputs: dict[str, tuple[str, bytes]], name: str, datatype: str) -> bytes:
    found, content = outputs.get(name, ("missing", b""))
    if found != datatype:
        raise ProtocolError(
            f"the output {name} is {found}, not {datatype}; this client needs a model of its version"
        )
    return content


def _read_bytes(outputs: dict[str, tuple[str, bytes]], name: str) -> bytes:
    content = _output(outputs, name, "BYTES")
    if len(content) < 4 or len(content) != 4 + int.from_bytes(content[:4], "little"):
        raise ProtocolError(f"the output {name} is not one string")
    return content[4:]


def _read_string(outputs: dict[str, tuple[str, bytes]], name: str) -> str:
    try:
        return _read_bytes(outputs, name).decode()
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the output {name} is not UTF-8") from error


def _read_ids(outputs: dict[str, tuple[str, bytes]], name: str = "output_ids") -> tuple[int, ...]:
    content = _output(outputs, name, "INT32")
    if len(content) % 4:
        raise ProtocolError(f"the output {name} has half a number")
    return tuple(np.frombuffer(content, "<i4").tolist())


def _read_score(outputs: dict[str, tuple[str, bytes]]) -> Score | None:
    if "prompt_ids" not in outputs:
        return None
    ids = _read_ids(outputs, "prompt_ids")
    logprobs = _read_logprobs(outputs, PROMPT_OUTPUTS, ids[1:])
    return Score(ids, tuple(each.logprob for each in logprobs), tuple(each.top for each in logprobs))


def _read_logprobs(
    outputs: dict[str, tuple[str, bytes]], names: tuple[str, ...], tokens: tuple[int, ...]
) -> tuple[TokenLogprob, ...]:
    """Of `tokens`, which are in the same response; none if they were not asked for."""
    found = [outputs.get(name, (OUTPUT_DATATYPES[name], b"")) for name in names]
    if [datatype for datatype, _ in found] != ["FP32", "INT32", "FP32"]:
        raise ProtocolError(f"log-probabilities came as {', '.join(datatype for datatype, _ in found)}")
    chosen, ids, top = (np.frombuffer(content, NUMPY_TYPES[datatype]) for datatype, content in found)
    if not len(chosen):
        return ()
    if len(chosen) != len(tokens) or len(ids) != len(top) or len(ids) % len(tokens):
        raise ProtocolError(f"{len(chosen)} log-probabilities came with {len(tokens)} tokens")
    likeliest = zip(ids.reshape(len(tokens), -1).tolist(), top.reshape(len(tokens), -1).tolist(), strict=True)
    pairs = (tuple(zip(row, values, strict=True)) for row, values in likeliest)
    return tuple(map(TokenLogprob, tokens, chosen.tolist(), pairs))


def _read_number(outputs: dict[str, tuple[str, bytes]], name: str) -> int:
    content = _output(outputs, name, "UINT32")
    if len(content) != 4:
        raise ProtocolError(f"the output {name} is not one number")
    return int.from_bytes(content, "little")
