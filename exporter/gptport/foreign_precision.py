"""The precision of a graph that another exporter wrote, told from its nodes, and how close the packaged graph is to be to it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from .errors import UnsupportedModel
from .foreign_graph import nodes
from .precision import PRECISIONS

if TYPE_CHECKING:
    from .foreign_graph import ForeignGraph
    from .precision import Precision

_BY_DTYPE = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
_IN_BLOCKS = {"MatMulNBits": "bits", "QMoE": "expert_weight_bits", "MatMulBnb4": ""}
# The packaged graph computes the same. With weights in integers, a graph gives other logits for a token alone than among many
# (measured: 0.6 of 37, SmolLM2 in int4); on the text both graphs are run in the same call.
_TOLERANCE, _MAX_PERPLEXITY_INCREASE = 0.1, 0.001
# With activations quantized by their range, a graph computes otherwise in other pieces (SmolLM2: a perplexity of 85 or 67).
_MAX_DYNAMIC_INCREASE = 1.0
_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")
_EIGHT_BITS = ("DequantizeLinear", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul")


def precision_of(foreign: ForeignGraph) -> Precision:
    """int4 if a product has weights of 4 bits, int8 if one has of 8, else the dtype of the cache, in which the rest is computed.

    Raises:
        UnsupportedModel: the weights have other bits, or the cache another dtype.
    """
    cache = foreign.cache[0].past
    dtype = _BY_DTYPE.get(cache.dtype) if cache.dtype is not None else None
    if dtype is None:
        raise UnsupportedModel(
            f"{foreign.path}: {cache.name} is {cache.dtype}; expected FLOAT, FLOAT16 or BFLOAT16"
        )
    bits = {_bits(node) for node in nodes(foreign.model)} - {None}
    if not bits <= {4, 8}:
        raise UnsupportedModel(f"{foreign.path} has weights of {min(bits - {4, 8})} bits; expected 4 or 8")  # type: ignore[type-var]
    found = PRECISIONS["int4" if 4 in bits else "int8" if bits else dtype]
    tolerance, increase = min(found.tolerance, _TOLERANCE), _MAX_PERPLEXITY_INCREASE
    if (
        foreign.grows
    ):  # compared with itself in other pieces, which it computes as exactly as it stores its weights
        increase = found.max_perplexity_increase
    if any(node.op_type in _DYNAMIC for node in nodes(foreign.model)):
        tolerance, increase = PRECISIONS["int4"].tolerance, _MAX_DYNAMIC_INCREASE
    return replace(
        found,
        dtype_name=PRECISIONS[dtype].dtype_name,
        tolerance=tolerance,
        max_perplexity_increase=increase,
    )


def _bits(node: ir.Node) -> int | None:
    if node.domain == "com.microsoft" and node.op_type in _IN_BLOCKS:
        attribute = _IN_BLOCKS[node.op_type]
        return node.attributes.get_int(attribute, 4) if attribute else 4
    return 8 if node.op_type in _EIGHT_BITS else None
