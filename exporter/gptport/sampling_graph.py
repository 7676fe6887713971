"""sampler.onnx: draws tokens on the device that has the logits, so that nothing else of them crosses to the host.

It computes what docs/protocol.md says under "Sampling, exactly", for all rows of a step at once, with standard operators that
onnxruntime has on CUDA too; docs/manifest.md has its inputs. No more of a vocabulary is sorted than the largest `top_k` asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import parser

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest

GRAPH = "sampler.onnx"

_TEXT = """
<ir_version: {ir_version}, opset_import: ["": {opset}]>
sampler (
    {dtype}[rows, vocab] logits, double[rows, 5] draws, int64[1] most,
    int64[firsts, 2] first_at, float[firsts] first,
    int64[scaling, 2] scaled_at, float[scaling] scales,
    int64[lasts, 2] last_at, float[lasts] last
) => (double[rows, 2] drawn)
<
    int64[1, 2] first_at = {{0, 0}}, float[1] first = {{0}},
    int64[1, 2] scaled_at = {{0, 0}}, float[1] scales = {{1}},
    int64[1, 2] last_at = {{0, 0}}, float[1] last = {{0}},
    int64[1] across = {{1}}, int64 axis = {{1}}, float zero = {{0}}, float one = {{1}}
>
{{
    u, temperature, top_k, top_p, min_p = Split <axis = 1, num_outputs = 5> (draws)

    raw = Cast <to = 1> (logits)
    biased = ScatterND <reduction = "add"> (raw, first_at, first)
    found = GatherND (biased, scaled_at)
    positive = Greater (found, zero)
    divided = Div (found, scales)
    multiplied = Mul (found, scales)
    penalty = Where (positive, divided, multiplied)
    penalized = ScatterND (biased, scaled_at, penalty)
    adjusted = ScatterND <reduction = "add"> (penalized, last_at, last)

    values, ids = TopK <axis = 1> (adjusted, most)
    heat = Cast <to = 1> (temperature)
    scaled = Div (values, heat)
    largest = ReduceMax <keepdims = 1> (scaled, across)
    exact = Cast <to = 11> (scaled)
    exact_largest = Cast <to = 11> (largest)
    below = Sub (exact, exact_largest)
    weights = Exp (below)

    mass = CumSum (weights, axis)
    count = Cast <to = 7> (top_k)
    last_of_k = Sub (count, across)
    whole = GatherElements <axis = 1> (mass, last_of_k)
    cumulative = Div (mass, whole)
    short = Less (cumulative, top_p)
    short_numbers = Cast <to = 1> (short)
    short_count = ReduceSum <keepdims = 1> (short_numbers, across)
    reached = Add (short_count, one)
    likely = GreaterOrEqual (weights, min_p)
    likely_numbers = Cast <to = 1> (likely)
    likely_count = ReduceSum <keepdims = 1> (likely_numbers, across)
    fewer = Min (reached, likely_count)
    kept = Max (fewer, one)
    end = Sub (kept, one)

    end_place = Cast <to = 7> (end)
    kept_mass = GatherElements <axis = 1> (cumulative, end_place)
    goal = Mul (u, kept_mass)
    passed = LessOrEqual (cumulative, goal)
    passed_numbers = Cast <to = 1> (passed)
    passed_count = ReduceSum <keepdims = 1> (passed_numbers, across)
    rank = Min (passed_count, end)
    place = Cast <to = 7> (rank)
    token = GatherElements <axis = 1> (ids, place)
    value = GatherElements <axis = 1> (values, place)

    no_number = IsNaN (adjusted)
    no_numbers = Cast <to = 1> (no_number)
    worst = ReduceMax <keepdims = 1> (no_numbers, across)
    failed = Cast <to = 9> (worst)
    nan = Div (zero, zero)
    checked = Where (failed, nan, value)
    exact_token = Cast <to = 11> (token)
    exact_value = Cast <to = 11> (checked)
    drawn = Concat <axis = 1> (exact_token, exact_value)
}}
"""
"""In the notation of https://github.com/onnx/onnx/blob/main/docs/Syntax.md; Cast to 1 float, 7 int64, 9 bool, 11 double."""

_DTYPES = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


def write(folder: Path, manifest: Manifest) -> None:
    """Write sampler.onnx for the logits of the graph that is there."""
    (logits,) = (tensor for tensor in manifest.outputs if tensor.name == manifest.roles["logits"])
    onnx.save(model(logits.dtype), folder / GRAPH)


def model(dtype: str) -> onnx.ModelProto:
    """The graph for logits of `dtype`, float32, float16 or bfloat16, of any batch and vocabulary."""
    text = _TEXT.format(ir_version=10, opset=18, dtype=_DTYPES[dtype])
    made = parser.parse_model(text)
    onnx.checker.check_model(made, full_check=True)
    return made
