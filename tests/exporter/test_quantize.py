"""Weights in integers: what the quantizers store, what the kernels make of it, and that a bad quantization fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from gptport import cli
from gptport.errors import UsageError, VerificationError
from gptport.precision import PRECISIONS, Quantization, chosen
from gptport.quantize import LazyIntegers, blocks_of, gptq, quantize, zero_points_width

RANDOM = np.random.default_rng(0)
# The largest rounding error, in steps: half a step, and for whole zero points another half.
WITHIN = {"rtn": 1.0, "k_quant": 2.0, "hqq": 2.0}


def multiplied(matrix, blocks, quantization):
    """What stands for matrix [N, K], as onnxruntime's MatMulNBits reads its blocks, float32."""
    names = {
        "packed": blocks.packed,
        "scales": blocks.scales,
        "zero_points": blocks.zero_points,
    }
    node = helper.make_node(
        "MatMulNBits",
        ["x", *(name for name, value in names.items() if value is not None)],
        ["y"],
        domain="com.microsoft",
        N=matrix.shape[0],
        K=matrix.shape[1],
        bits=quantization.bits,
        block_size=quantization.block_size,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", matrix.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", matrix.shape[0]])],
        [numpy_helper.from_array(value, name) for name, value in names.items() if value is not None],
    )
    model = helper.make_model(
        graph,
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": np.eye(matrix.shape[1], dtype=np.float32)})[0].T


@pytest.mark.parametrize("features", [64, 96, 40], ids=["whole blocks", "odd blocks", "a padded block"])
@pytest.mark.parametrize(
    ("algorithm", "symmetric", "bits"),
    [
        *((algorithm, False, bits) for algorithm in ("rtn", "k_quant") for bits in (4, 8)),
        *(("rtn", True, bits) for bits in (4, 8)),
        ("hqq", False, 4),
    ],
)
def test_the_kernel_reads_what_the_quantizer_stored(algorithm, symmetric, bits, features):
    quantization = Quantization(algorithm, bits, 32, symmetric)
    matrix = RANDOM.normal(size=(24, features)).astype(np.float32)
    blocks = quantize(torch.from_numpy(matrix), quantization)
    assert blocks.packed.shape == (24, blocks_of(features, quantization), 32 * bits // 8)
    assert blocks.scales.shape == (24, blocks_of(features, quantization))
    if symmetric:
        assert blocks.zero_points is None
    else:
        assert blocks.zero_points.shape == (24, zero_points_width(features, quantization))
    steps = np.abs(blocks.scales).repeat(32, axis=1)[:, :features]
    error = np.abs(multiplied(matrix, blocks, quantization) - matrix) / steps
    assert error.max() < WITHIN[algorithm]
    assert error.mean() < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_to_nearest_gives_the_integers_of_onnxruntime(bits, symmetric, dtype):
    matrix = torch.from_numpy(RANDOM.normal(size=(900, 768)).astype(np.float32)).to(dtype)
    matrix[0], matrix[1], matrix[2], matrix[3] = 0, 0.5, -matrix[2].abs(), matrix[3].abs()
    quantization = Quantization("rtn", bits, 32, symmetric)
    config = DefaultWeightOnlyQuantConfig(bits=bits, block_size=32, is_symmetric=symmetric)
    packed, scales, zero_points = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
        np.ascontiguousarray(matrix.float().numpy().T)
    )
    blocks = quantize(matrix, quantization)
    np.testing.assert_array_equal(blocks.packed, packed)
    np.testing.assert_array_equal(blocks.scales, scales)
    if not symmetric:
        np.testing.assert_array_equal(blocks.zero_points, zero_points)


def test_blocks_of_equal_values_are_stored_without_a_warning(recwarn):
    matrix = np.zeros((4, 64), np.float32)
    matrix[1], matrix[2] = 0.5, -0.5
    for algorithm in ("rtn", "k_quant", "hqq"):
        quantization = Quantization(algorithm, 4)
        got = multiplied(matrix, quantize(torch.from_numpy(matrix), quantization), quantization)
        assert np.abs(got - matrix).max() < 0.01, algorithm
    assert not recwarn.list


def test_many_rows_are_quantized_as_few_are():
    matrix = torch.from_numpy(RANDOM.normal(size=(4100, 32)).astype(np.float32))
    quantization = Quantization("k_quant", 4)
    whole, part = quantize(matrix, quantization), quantize(matrix[4090:], quantization)
    np.testing.assert_array_equal(whole.packed[4090:], part.packed)
    np.testing.assert_array_equal(whole.scales[4090:], part.scales)


def test_a_matrix_is_quantized_once_and_let_go_after_its_last_part():
    made = []

    def make():
        made.append(1)
        return quantize(torch.ones(2, 32), Quantization("rtn", 4))

    lazy = LazyIntegers(make)
    takes = [lazy.expect(part) for part in ("packed", "scales", "zero_points")]
    assert [take().shape for take in takes] == [(2, 1, 16), (2, 1), (2, 1)]
    assert len(made) == 1
    takes[0]()
    assert len(made) == 2


@pytest.mark.parametrize("features", [64, 40], ids=["whole blocks", "a padded block"])
def test_gptq_loses_less_of_the_product_than_rounding(features):
    inputs = (RANDOM.normal(size=(512, 8)) @ RANDOM.normal(size=(8, features))).astype(np.float32)
    inputs[:, 5] = 0  # a feature that is never used
    matrix = RANDOM.normal(size=(48, features)).astype(np.float32)
    quantization = Quantization("gptq", 4)
    blocks = gptq(torch.from_numpy(matrix), torch.from_numpy(inputs.T @ inputs), quantization)
    by_rounding = multiplied(matrix, quantize(torch.from_numpy(matrix), Quantization("rtn", 4)), quantization)
    by_gptq = multiplied(matrix, blocks, quantization)
    errors = [np.square(inputs @ (got - matrix).T).mean() for got in (by_gptq, by_rounding)]
    assert errors[0] < 0.5 * errors[1]


def test_an_export_by_gptq(checkpoint, export_to, tmp_path):
    exported = export_to(checkpoint, tmp_path, precision=chosen("int4", algorithm="gptq"))
    assert Counter(node.op_type for node in nodes_of(exported, checkpoint.name))["MatMulNBits"] == 13
    assert exported.parity.greedy_agreement > 0.3


def test_gptq_takes_the_head_too(checkpoint, export_to, tmp_path):
    exported = export_to(checkpoint, tmp_path, precision=chosen("int4", algorithm="gptq", head_bits=4))
    assert bits_of(nodes_of(exported, checkpoint.name))["MatMulNBits", 4] == 13
    assert exported.parity.greedy_agreement > 0.3


def test_gptq_says_when_it_needs_more_memory_than_there_is(llama, export_to, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10_000))
    with pytest.raises(UsageError, match=r"gptq needs up to 421,888 bytes .* 10,000 are free"):
        export_to(llama, tmp_path, precision=chosen("int4", algorithm="gptq"))


def nodes_of(exported, name):
    return onnx.load(exported.folders[name] / "model.onnx", load_external_data=False).graph.node


def bits_of(nodes):
    """(operator, bits) → how many."""
    return Counter((node.op_type, a.i) for node in nodes for a in node.attribute if a.name == "bits")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_every_matrix_of_an_export_is_in_integers(checkpoint, export_to, tmp_path, precision):
    exported = export_to(checkpoint, tmp_path, precision=precision)
    nodes = nodes_of(exported, checkpoint.name)
    counted = Counter(node.op_type for node in nodes)
    assert counted["MatMulNBits"] == 4 * 3 + 1
    assert not counted["MatMul"] + counted["Gemm"]
    assert counted["GatherBlockQuantized"] == 1
    matrices = {8: 13} if precision == "int8" else {4: 12, 8: 1}
    products = {("MatMulNBits", bits): count for bits, count in matrices.items()}
    assert bits_of(nodes) == {**products, ("GatherBlockQuantized", 8): 1}
    assert exported.parity.perplexity_increase < PRECISIONS[precision].max_perplexity_increase


def test_a_tied_embedding_is_stored_once(llama, llama_untied, export_to, tmp_path):
    tied, untied = (
        list(nodes_of(export_to(each, tmp_path, precision="int4"), each.name))
        for each in (llama, llama_untied)
    )
    for nodes, same in ((tied, True), (untied, False)):
        rows = next(node.input[0] for node in nodes if node.op_type == "GatherBlockQuantized")
        head = next(node.input[1] for node in reversed(nodes) if node.op_type == "MatMulNBits")
        assert (rows == head) == same


def test_a_head_of_four_bits_leaves_the_embedding_at_eight(llama, export_to, tmp_path):
    nodes = list(nodes_of(export_to(llama, tmp_path, precision=chosen("int4", head_bits=4)), llama.name))
    assert bits_of(nodes) == {("MatMulNBits", 4): 13, ("GatherBlockQuantized", 8): 1}


@pytest.mark.parametrize("bits", ["int4", "int8"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_integers_that_compute_in_bfloat16_are_as_exact_as_in_float32(
    llama, export_to, tmp_path, bits, symmetric
):
    narrow, full = (
        export_to(llama, tmp_path / compute, precision=chosen(bits, compute=compute, symmetric=symmetric))
        for compute in ("bf16", "fp32")
    )
    differences = [each.parity.max_abs_logit_difference for each in (narrow, full)]
    assert differences[0] < 1.5 * differences[1]


def test_int4_that_computes_in_half_precision(llama, export_to, tmp_path):
    exported = export_to(llama, tmp_path, precision=chosen("int4", compute="fp16"))
    cache = exported.manifest.kv_cache
    assert (exported.manifest.precision, cache.dtype) == ("int4", "float16")
    assert exported.manifest.outputs[0].dtype == "float32"


def test_a_quantization_that_costs_too_much_is_not_published(llama, export_to, tmp_path):
    strict = replace(PRECISIONS["int4"], max_perplexity_increase=-1.0)
    with pytest.raises(VerificationError, match=r"perplexity .* rises by .*--max-perplexity-increase"):
        export_to(llama, tmp_path, precision=strict)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "int5"}, r"'int5' is not one of fp32, fp16"),
        ({"name": "fp32", "algorithm": "rtn"}, "fp32 is not quantized"),
        ({"name": "int4", "algorithm": "best"}, "'best' is not one of rtn, k_quant, gptq, hqq"),
        ({"name": "int4", "block_size": 48}, "48 is not one of 16, 32"),
        ({"name": "int4", "algorithm": "hqq", "symmetric": True}, "hqq needs zero points"),
        ({"name": "int8", "algorithm": "hqq"}, "hqq goes with int4"),
        ({"name": "int4", "head_bits": 2}, "--head-bits 2 is not 4 or 8"),
        ({"name": "int8", "head_bits": 4}, "--head-bits 4 is not 8"),
        ({"name": "int4", "compute": "fp8"}, "'fp8' is not one of fp32, fp16, bf16"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(arguments, message):
    with pytest.raises(UsageError, match=message):
        chosen(**arguments)


@pytest.mark.parametrize(("given", "share"), [("2%", 0.02), ("0.5", 0.5), ("0", 0.0)])
def test_a_share_may_be_given_in_percent(given, share):
    options = cli.parser().parse_args(["export", "x", "--max-perplexity-increase", given])
    assert options.max_perplexity_increase == share


@pytest.mark.parametrize("given", ["-1", "much", "nan", "inf%"])
def test_what_is_no_share_is_wrong_usage(given, capsys):
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["export", "x", f"--max-perplexity-increase={given}"])
    assert "--max-perplexity-increase" in capsys.readouterr().err
