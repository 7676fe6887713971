"""Requests and responses byte by byte, without a server."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from gptport_client import Chunk, ProtocolError, SamplingParams, Usage
from gptport_client._step_wire import read_logits, step_request
from gptport_client._wire import file_request, read_file, read_text, text_request
from toy_wire import final_response, read_inputs, text_response


def inputs(request):
    """(datatype, shape, content) of each input, by name."""
    pairs = zip(request.inputs, request.raw_input_contents, strict=True)
    return {tensor.name: (tensor.datatype, list(tensor.shape), content) for tensor, content in pairs}


def test_a_text_request_has_every_parameter_as_its_type():
    params = SamplingParams(7, 0.5, 3, 0.25, 2**63, ["a", "ß"])
    request = text_request("toy", "id", "Grüße", params, stream=True)
    assert (request.model_name, request.id) == ("toy", "id")
    assert inputs(request) == {
        "text_input": ("BYTES", [1], b"\x07\0\0\0Gr\xc3\xbc\xc3\x9fe"),
        "max_tokens": ("INT32", [1], struct.pack("<i", 7)),
        "temperature": ("FP32", [1], struct.pack("<f", 0.5)),
        "top_k": ("INT32", [1], struct.pack("<i", 3)),
        "top_p": ("FP32", [1], struct.pack("<f", 0.25)),
        "seed": ("UINT64", [1], struct.pack("<Q", 2**63)),
        "stop_words": ("BYTES", [2], b"\x01\0\0\0a\x02\0\0\0\xc3\x9f"),
        "stream": ("BOOL", [1], b"\x01"),
    }


def test_a_text_request_leaves_out_what_was_not_given():
    request = text_request("toy", "id", (1, 2, 3), SamplingParams(), stream=False)
    assert inputs(request)["input_ids"] == ("INT32", [3], struct.pack("<3i", 1, 2, 3))
    assert inputs(request).keys() == {"input_ids", "stream"}


def test_a_file_request_has_a_parameter_and_no_inputs():
    request = file_request("toy", "id", "tokenizer.json")
    assert request.parameters["file"].string_param == "tokenizer.json"
    assert not request.inputs


def test_a_step_request_appends_behind_the_past():
    request = step_request("toy_step", "id", 2**62, [5, 6], 10, start=False, end=True)
    tensors = read_inputs(request)
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in request.inputs] == [
        ("input_ids", "INT64", [1, 2]),
        ("position_ids", "INT64", [1, 2]),
        ("seqlens_k", "INT32", [1, 1]),
    ]
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "input_ids": [[5, 6]],
        "position_ids": [[10, 11]],
        "seqlens_k": [[11]],
    }
    parameters = request.parameters
    assert parameters["sequence_id"].int64_param == 2**62
    assert (parameters["sequence_start"].bool_param, parameters["sequence_end"].bool_param) == (False, True)


def test_a_text_response_is_a_chunk():
    request = service_pb2.ModelInferRequest(id="id")
    more = text_response(request, "ß".encode(), (7, 8), "", 3, 2, final=False).infer_response
    last = text_response(request, b"", (9,), "length", 3, 3, final=True).infer_response
    assert read_text(more) == ((Chunk("ß", (7, 8)),), False)
    assert read_text(last) == ((Chunk("", (9,), "length", Usage(3, 3)),), True)
    assert read_text(final_response(request).infer_response) == ((), True)


def test_a_response_may_have_several_answers():
    response = service_pb2.ModelInferResponse()
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"a", b"", b"bc"))
    reasons = b"".join(struct.pack("<I", 4) + b"stop" for _ in range(3))
    for name, datatype, content in (
        ("text_output", "BYTES", texts),
        ("finish_reason", "BYTES", reasons),
        ("index", "INT32", struct.pack("<3i", 0, 1, 2)),
        ("output_ids", "INT32", struct.pack("<3i", 7, 8, 9)),
        ("num_input_tokens", "UINT32", struct.pack("<I", 4)),
        ("num_output_tokens", "UINT32", struct.pack("<3I", 1, 0, 2)),
        ("cum_log_probs", "FP32", struct.pack("<3f", 0.0, -1.0, -2.0)),
    ):
        response.outputs.add(name=name, datatype=datatype)
        response.raw_output_contents.append(content)
    chunks = tuple(
        Chunk(text, ids, "stop", Usage(4, len(ids)), index=index, logprob=-float(index))
        for index, (text, ids) in enumerate([("a", (7,)), ("", ()), ("bc", (8, 9))])
    )
    assert read_text(response) == (chunks, False)
    response.raw_output_contents[3] = struct.pack("<2i", 7, 8)
    with pytest.raises(ProtocolError, match="3 answers came with 3 reasons and 2 tokens"):
        read_text(response)


def test_a_file_is_bytes():
    request = service_pb2.ModelInferRequest(id="id")
    assert (
        read_file(text_response(request, b"\xff{}", (), "stop", 0, 0, final=True).infer_response) == b"\xff{}"
    )
    assert read_file(final_response(request).infer_response) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.outputs.pop(), "5 outputs, 6 contents"),
        (lambda r: setattr(r.outputs[0], "name", "other"), "text_output is missing, not BYTES"),
        (lambda r: setattr(r.outputs[1], "datatype", "INT64"), "output_ids is INT64, not INT32"),
        (
            lambda r: r.raw_output_contents.__setitem__(0, b"\x05\0\0\0abc"),
            "text_output is not a list of strings",
        ),
        (lambda r: r.raw_output_contents.__setitem__(0, b"\x01\0\0\0\xff"), "text_output is not UTF-8"),
        (lambda r: r.raw_output_contents.__setitem__(1, b"\x01\0\0"), "half a number"),
        (lambda r: r.raw_output_contents.__setitem__(2, b"\x03\0\0\0why"), "finish reason 'why'"),
        (
            lambda r: r.raw_output_contents.__setitem__(3, b""),
            "num_input_tokens has 0 bytes, not 1 of 4 each",
        ),
    ],
)
def test_a_response_of_another_form_is_a_protocol_error(change, message):
    response = text_response(
        service_pb2.ModelInferRequest(), b"a", (1,), "stop", 1, 1, final=True
    ).infer_response
    change(response)
    with pytest.raises(ProtocolError, match=message):
        read_text(response)


def test_logits_are_float32_of_the_vocabulary():
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="logits", datatype="FP32", shape=(1, 3))
    response.raw_output_contents.append(struct.pack("<3f", 1, 2, 3))
    logits = read_logits(response, 3)
    assert (logits.dtype, logits.tolist()) == (np.float32, [1, 2, 3])
    with pytest.raises(ProtocolError, match="12 bytes of logits, not 4 numbers"):
        read_logits(response, 4)
