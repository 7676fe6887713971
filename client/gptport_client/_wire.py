"""Requests to and responses from the text model, as docs/protocol.md has them. Pure."""

from __future__ import annotations

import json
import struct
from dataclasses import fields
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from gptport_client._errors import ProtocolError
from gptport_client._message import NUMPY_TYPES, add_values, content_of, new_request, outputs_of
from gptport_client._results import Chunk, TokenLogprob, Usage, finish_reason
from gptport_client._score import Score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._beam_search import BeamOptions
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._params import SamplingParams
    from gptport_client._prompt import CheckedPrompt


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
    "prompt_lookup": (("prompt_lookup", "INT32"),),
}
# What the text model answers with.
OUTPUT_DATATYPES = {
    "text_output": "BYTES",
    "index": "INT32",
    "output_ids": "INT32",
    "finish_reason": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "cum_log_probs": "FP32",
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
OPTIONAL_OUTPUTS = (
    "cum_log_probs",
    "prompt_ids",
    *LOGPROB_OUTPUTS,
    *PROMPT_OUTPUTS,
)  # there if they were asked for


ADAPTERS_FILE = "adapters"  # no file, but asked for as one


def text_request(
    model: str,
    request_id: str,
    prompt: CheckedPrompt,
    params: SamplingParams,
    *,
    stream: bool,
    n: int = 1,
    timeout: float | None = None,
    beams: BeamOptions | None = None,
) -> InferRequest:
    """Ask the text model to continue a prompt, `n` times, for at most `timeout` seconds. Defaults are left out."""
    request = new_request(model, request_id)
    if isinstance(prompt, str):
        add_values(request, "text_input", "BYTES", (prompt,))
    else:
        add_values(request, "input_ids", "INT32", prompt)
    for field in fields(params):
        value = getattr(params, field.name)
        if value != field.default:
            for (name, datatype), values in zip(PARAMETER_TENSORS[field.name], _columns(value), strict=True):
                add_values(request, name, datatype, values)
    if n != 1:
        add_values(request, "n", "INT32", (n,))
    if beams is not None:
        add_values(request, "beam_width", "INT32", (beams.beams,))
        add_values(request, "length_penalty", "FP32", (beams.length_penalty,))
    if timeout is not None:
        add_values(request, "timeout", "FP32", (timeout,))
    add_values(request, "stream", "BOOL", (stream,))
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def file_request(model: str, request_id: str, file: str) -> InferRequest:
    """Ask the text model for one of its files."""
    request = new_request(model, request_id)
    request.parameters["file"].string_param = file
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def read_text(response: InferResponse) -> tuple[tuple[Chunk, ...], bool]:
    """One response of the text model: a piece of an answer or several answers, and whether it is the last response.

    Raises:
        ProtocolError: it is not what docs/protocol.md describes.
    """
    flag = response.parameters.get("triton_final_response")  # [] would add the key
    final = flag is not None and flag.bool_param
    outputs = outputs_of(response)
    if not outputs:
        return (), final
    (prompt_tokens,) = _read_numbers(outputs, "num_input_tokens", 1)
    texts, reasons = _read_strings(outputs, "text_output"), _read_strings(outputs, "finish_reason")
    indices = _read_numbers(outputs, "index", len(texts))
    counts = _read_numbers(outputs, "num_output_tokens", len(texts))
    ids, score = _read_ids(outputs), _read_score(outputs)
    logprobs = _read_logprobs(outputs, LOGPROB_OUTPUTS, ids)
    sums = _read_sums(outputs, len(texts))
    ends = list(accumulate(counts)) if len(texts) > 1 else [len(ids)]
    if len(reasons) != len(texts) or ends[-1] != len(ids):
        raise ProtocolError(f"{len(texts)} answers came with {len(reasons)} reasons and {len(ids)} tokens")
    return tuple(
        Chunk(
            text=text,
            token_ids=ids[begin:end],
            logprobs=logprobs[begin:end],
            finish_reason=finish_reason(reason) if reason else None,
            usage=Usage(prompt_tokens, count) if reason else None,
            prompt_score=None if begin else score,
            index=index,
            logprob=logprob,
        )
        for text, reason, index, count, begin, end, logprob in zip(
            texts, reasons, indices, counts, [0, *ends[:-1]], ends, sums, strict=True
        )
    ), final


def read_file(response: InferResponse) -> bytes | None:
    """The file in a response to `file_request`; None if the response carries no data."""
    outputs = outputs_of(response)
    return _read_bytes(outputs, "text_output")[0] if outputs else None


def read_adapters(content: bytes) -> tuple[str, ...]:
    """The names in the list of adapters.

    Raises:
        ProtocolError: it is no list of names.
    """
    try:
        names = json.loads(content)
    except ValueError as error:
        raise ProtocolError(f"the list of adapters is no JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ProtocolError(f"the list of adapters is {str(names)[:80]}")
    return tuple(names)


def _columns(value: Any) -> Sequence[Sequence[Any]]:
    """What goes into the tensors of a parameter: one column, or for pairs two."""
    if not isinstance(value, tuple):
        return [[value]]
    return list(zip(*value, strict=True)) if isinstance(value[0], tuple) else [value]


def _read_sums(outputs: dict[str, tuple[str, bytes]], count: int) -> list[float | None]:
    if "cum_log_probs" not in outputs:
        return [None] * count
    content = content_of(outputs, "cum_log_probs", "FP32")
    if len(content) != 4 * count:
        raise ProtocolError(f"cum_log_probs has {len(content)} bytes for {count} answers")
    return list(struct.unpack(f"<{count}f", content))


def _read_bytes(outputs: dict[str, tuple[str, bytes]], name: str) -> list[bytes]:
    content = content_of(outputs, name, "BYTES")
    values, place = [], 0
    while place < len(content):
        begin = place + 4
        place = begin + int.from_bytes(content[place:begin], "little")
        values.append(content[begin:place])
    if place != len(content) or not values:
        raise ProtocolError(f"the output {name} is not a list of strings")
    return values


def _read_strings(outputs: dict[str, tuple[str, bytes]], name: str) -> list[str]:
    try:
        return [value.decode() for value in _read_bytes(outputs, name)]
    except UnicodeDecodeError as error:
        raise ProtocolError(f"the output {name} is not UTF-8") from error


def _read_ids(outputs: dict[str, tuple[str, bytes]], name: str = "output_ids") -> tuple[int, ...]:
    content = content_of(outputs, name, "INT32")
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


def _read_numbers(outputs: dict[str, tuple[str, bytes]], name: str, count: int) -> list[int]:
    content = content_of(outputs, name, OUTPUT_DATATYPES[name])
    if len(content) != 4 * count:
        raise ProtocolError(f"the output {name} has {len(content)} bytes, not {count} of 4 each")
    return list(np.frombuffer(content, NUMPY_TYPES[OUTPUT_DATATYPES[name]]).tolist())
