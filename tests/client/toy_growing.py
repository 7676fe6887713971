"""The toy's step model as a graph whose cache grows: a position of each row of the cache is the token there."""

from __future__ import annotations

import numpy as np
from tritonclient.grpc import model_config_pb2 as pb

from toy_regions import HEAD_DIM, HEADS, TENSORS

INPUTS = {
    "input_ids": (pb.TYPE_INT64, [-1, -1]),
    "attention_mask": (pb.TYPE_INT64, [-1, -1]),
    "position_ids": (pb.TYPE_INT64, [-1, -1]),
    "use_cache_branch": (pb.TYPE_BOOL, [1]),
    "num_logits_to_keep": (pb.TYPE_INT64, [1]),
}


def describe(config, inputs, datatype: str) -> None:
    """The configuration of a graph with these inputs beside the cache."""
    for name in inputs:
        config.input.add(name=name, data_type=INPUTS[name][0], dims=INPUTS[name][1])
    dims = [-1, HEADS, -1, HEAD_DIM]
    for past, present in TENSORS:
        config.input.add(name=past, data_type=pb.DataType.Value(f"TYPE_{datatype}"), dims=dims)
        config.output.add(name=present, data_type=pb.DataType.Value(f"TYPE_{datatype}"), dims=dims)
    config.output.add(name="logits", data_type=pb.TYPE_FP32, dims=[-1, -1, -1])


def tokens_before(tensors: dict, inputs) -> list[int]:
    """The tokens that a request's cache is of; its other inputs fit."""
    assert tensors.keys() == {*inputs, *(past for past, _ in TENSORS)}
    ids, rows = tensors["input_ids"], set()
    for past, _ in TENSORS:
        _, heads, count, width = tensors[past].shape
        assert (heads, width) == (HEADS, HEAD_DIM)
        rows |= set(
            map(
                tuple,
                tensors[past][0].transpose(0, 2, 1).reshape(HEADS * HEAD_DIM, count).astype(int).tolist(),
            )
        )
    assert len(rows) == 1, rows
    (before,) = rows
    expected = {
        "attention_mask": np.ones((1, len(before) + ids.size)),
        "position_ids": np.arange(len(before), len(before) + ids.size)[None],
        "use_cache_branch": np.array([bool(before)]),
        "num_logits_to_keep": np.array([1]),
    }
    for name in inputs:
        if name in expected:
            assert tensors[name].tolist() == expected[name].tolist()
    return list(before)


def add_answer(response, ids: list[int], logits: np.ndarray, datatype: str) -> None:
    """The logits `[1, sequence, vocab]` and the cache of all ids."""
    dtype = {"FP32": np.float32, "FP16": np.float16}[datatype]
    cache = np.broadcast_to(np.array(ids, dtype)[:, None], (1, HEADS, len(ids), HEAD_DIM))
    outputs = {"logits": logits[None].astype(dtype)} | {present: cache for _, present in TENSORS}
    for name, array in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(np.ascontiguousarray(array).tobytes())
