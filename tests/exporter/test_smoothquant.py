"""Products by rows: what they lose, that a row does not depend on the others, and which CPUs are refused."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from gptport import cli, doctor, images, operator_counts, processor, report, smoothquant, weights
from gptport.calibration import Inputs
from gptport.errors import UsageError
from gptport.precision import PRECISIONS, chosen
from gptport.row_scales import by_rows, rounded
from gptport.smoothquant import SmoothQuant
from small_models import write_model

BY_ROWS = chosen("int8", algorithm="smoothquant")


computes_by_rows = pytest.mark.skipif(
    bool(processor.missing(processor.VNNI)), reason="this CPU's products by rows are wrong"
)


@pytest.fixture
def become(tmp_path_factory, monkeypatch):
    """Make it a CPU with these flags."""

    def change(*flags):
        info = tmp_path_factory.mktemp("proc") / "cpuinfo"
        info.write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(flags)} avx2\n\nprocessor\t: 1\n")
        monkeypatch.setattr(processor, "_INFO", info)

    return change


def nodes_of(exported, name):
    return list(onnx.load(exported.folders[name] / "model.onnx", load_external_data=False).graph.node)


def test_rows_stand_for_their_matrix_within_half_a_step():
    random = np.random.default_rng(0)
    matrix = torch.from_numpy(random.normal(size=(70, 48)).astype(np.float32))
    matrix[3] = 0
    smoothing = tuple(np.exp(random.normal(size=48)).tolist())
    rows = by_rows(matrix.bfloat16(), smoothing)
    assert rows.packed.shape == (48, 70)
    assert int(np.abs(rows.packed.astype(int)).max()) == 127
    stood_for = rows.packed.T * rows.scales[:, None] * rows.factors
    error = np.abs(stood_for - matrix.bfloat16().float().numpy()) / rows.factors
    assert (error <= 0.501 * rows.scales[:, None]).all()


class OneMatrix:
    """A checkpoint of one parameter, w."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __contains__(self, name):
        return name == "w"

    def shape(self, name):
        assert name == "w"
        return tuple(self.matrix.shape)

    def tensor(self, name):
        assert name == "w"
        return self.matrix


def initializer(matrix):
    graph = ir.Graph([], [], nodes=[], name="g")
    return weights.parameter(graph, "w", ir.DataType.FLOAT, tuple(matrix.shape))


def test_smoothing_leaves_a_row_its_integers_where_one_feature_is_large():
    torch.manual_seed(0)
    inputs, matrix = torch.randn(256, 64), torch.randn(48, 64)
    inputs[:, 7] = 60 + torch.randn(256)  # in every row, as in transformers
    matrix[:, 7] *= 0.05
    smoothing = torch.tensor(
        SmoothQuant(OneMatrix(matrix), {}, {"w": Inputs.of(inputs)})(initializer(matrix))
    )
    expected = inputs @ matrix.T
    plain = rounded(inputs) @ rounded(matrix).T
    smooth = rounded(inputs / smoothing) @ rounded(matrix * smoothing).T
    assert (smooth - expected).norm() < 0.25 * (plain - expected).norm()


def test_what_would_lose_too_much_is_left_in_blocks():
    torch.manual_seed(0)
    inputs, matrix = torch.randn(256, 64), torch.randn(48, 64)
    choose = SmoothQuant(OneMatrix(matrix), {}, {"w": Inputs.of(inputs)})
    assert len(choose(initializer(matrix))) == 64
    inputs[:, 0] *= 1000
    inputs[:, 1], matrix[:, 1] = -inputs[:, 0], matrix[:, 0]  # large, and nothing in the end
    choose = SmoothQuant(OneMatrix(matrix), {}, {"w": Inputs.of(inputs)})
    assert choose(initializer(matrix)) == ()
    assert SmoothQuant(OneMatrix(matrix), {}, {})(initializer(matrix)) == ()  # inputs that nobody knows


def test_a_feature_that_the_text_does_not_have_is_not_taken_to_be_nothing():
    torch.manual_seed(0)
    inputs, matrix = torch.randn(256, 64), torch.randn(48, 64)
    inputs[:, 9] = 0
    smoothing = torch.tensor(
        SmoothQuant(OneMatrix(matrix), {}, {"w": Inputs.of(inputs)})(initializer(matrix))
    )
    inputs[:, 9] = 1.0
    expected = inputs @ matrix.T
    smooth = rounded(inputs / smoothing) @ rounded(matrix * smoothing).T
    assert (smooth - expected).norm() < 0.1 * expected.norm()


@computes_by_rows
def test_every_product_of_an_export_is_by_rows(checkpoint, export_to, tmp_path):
    exported = export_to(checkpoint, tmp_path, precision=BY_ROWS)
    counted = Counter(node.op_type for node in nodes_of(exported, checkpoint.name))
    assert counted["MatMulIntegerToFloat"] == 4 * 3 + 1
    assert counted["GatherBlockQuantized"] == 1
    assert not counted["MatMulNBits"] + counted["MatMul"] + counted["Gemm"]
    assert exported.lowering.in_blocks == ""
    assert exported.parity.perplexity_increase < PRECISIONS["int8"].max_perplexity_increase
    assert exported.parity.text_greedy_agreement > 0.9
    assert exported.manifest.cpu_flags == processor.VNNI
    folder = exported.folders[checkpoint.name]
    assert "13 × MatMulIntegerToFloat of 8 bits" in operator_counts.in_integers(folder, exported.manifest)
    assert json.loads((folder / "manifest.json").read_text())["cpu_flags"] == list(processor.VNNI)
    drawn = {each.detail for each in exported.lowering.after.nodes if each.operator == "MatMulIntegerToFloat"}
    assert all(re.fullmatch(r"\d+ × \d+, 8 bits", detail) for detail in drawn)


class Batch:
    """Sequences side by side on an exported graph."""

    def __init__(self, exported, name, rows):
        self.manifest = exported.manifest
        path = str(exported.folders[name] / self.manifest.graph)
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        pasts = (tensor.past for tensor in self.manifest.kv_cache.tensors)
        self.cache = {
            past: np.zeros((rows, heads, 64, width), np.float32)
            for past, (heads, width) in zip(pasts, self.manifest.cache_shapes, strict=True)
        }
        self.length = 0

    def append(self, ids):
        """Float32 [rows, vocab], for what follows the last of `ids` [rows, tokens]."""
        rows, tokens = ids.shape
        positions = np.tile(np.arange(self.length, self.length + tokens), (rows, 1))
        self.length += tokens
        last = np.full(rows, self.length - 1, np.int32)
        feed = {"input_ids": ids, "position_ids": positions, "seqlens_k": last, **self.cache}
        logits, *present = self.session.run(None, feed)
        self.cache = dict(zip(self.cache, present, strict=True))
        return logits


@computes_by_rows
def test_a_row_gives_the_same_bits_whatever_is_beside_it(checkpoint, export_to, tmp_path):
    exported = export_to(checkpoint, tmp_path, precision=BY_ROWS)
    prompts = np.random.default_rng(1).integers(1, 380, (17, 12))
    alone = [Batch(exported, checkpoint.name, 1) for _ in prompts]
    together = Batch(exported, checkpoint.name, len(prompts))
    for part in (slice(0, 11), slice(11, 12)):  # a prefill, a decode step
        got = together.append(prompts[:, part])
        expected = [each.append(row[None, part])[0] for each, row in zip(alone, prompts, strict=True)]
        np.testing.assert_array_equal(got, expected)


@computes_by_rows
def test_products_that_lose_more_are_in_blocks_and_named(llama, export_to, tmp_path, monkeypatch):
    lost = smoothquant._lost

    def more(got, expected):
        return 1.0 if expected.shape[1] == 192 else lost(got, expected)  # gate and up

    monkeypatch.setattr(smoothquant, "_lost", more)
    exported = export_to(llama, tmp_path, precision=BY_ROWS)
    counted = Counter(node.op_type for node in nodes_of(exported, llama.name))
    assert (counted["MatMulIntegerToFloat"], counted["MatMulNBits"]) == (10, 3)
    said = "model.layers.0.mlp.gate_proj.weight+model.layers.0.mlp.up_proj.weight, model.layers.1.mlp."
    assert exported.lowering.in_blocks.startswith(said)
    assert "would lose more than 4%" in exported.lowering.in_blocks
    assert said in exported.report.read_text()


@computes_by_rows
def test_a_model_without_products_by_rows_runs_anywhere(checkpoint, export_to, tmp_path, monkeypatch):
    monkeypatch.setattr(smoothquant, "_lost", lambda *_: 1.0)
    exported = export_to(checkpoint, tmp_path, precision=BY_ROWS)
    counted = Counter(node.op_type for node in nodes_of(exported, checkpoint.name))
    assert (counted["MatMulIntegerToFloat"], counted["MatMulNBits"]) == (0, 13)
    assert exported.manifest.cpu_flags == ()
    assert "cpu_flags" not in json.loads((exported.folders[checkpoint.name] / "manifest.json").read_text())


@computes_by_rows
def test_a_graph_for_adapters_gives_the_same_without_one(llama, export_to, tmp_path):
    ids = np.random.default_rng(2).integers(1, 380, (3, 9))
    with_adapters, without = (
        Batch(export_to(llama, tmp_path / str(adapters), precision=BY_ROWS, adapters=adapters), llama.name, 3)
        for adapters in (True, False)
    )
    assert with_adapters.manifest.lora
    np.testing.assert_array_equal(with_adapters.append(ids), without.append(ids))


@computes_by_rows
def test_experts_stay_in_blocks_and_their_router_in_floats(checkpoints, gpt2, export_to, tmp_path):
    checkpoint = checkpoints / "afmoe_by_rows"
    write_model("afmoe", checkpoint, gpt2)  # the router of which is a Linear
    precision = chosen("int8", algorithm="smoothquant", block_size=16)
    exported = export_to(checkpoint, tmp_path, precision=precision)
    counted = Counter(node.op_type for node in nodes_of(exported, checkpoint.name))
    assert (counted["QMoE"], counted["MatMul"] + counted["Gemm"], counted["MatMulNBits"]) == (3, 3, 0)
    assert counted["MatMulIntegerToFloat"] > 6


@pytest.mark.parametrize("flags", [("avx512_vnni",), ("avx_vnni",)])
def test_either_kind_of_vnni_will_do(become, flags):
    become(*flags)
    assert processor.missing(processor.VNNI) == ""


def test_a_cpu_without_vnni_exports_nothing(llama, refused, become):
    become("avx512f")
    said = refused(llama, "--precision", "int8", "--quantization", "smoothquant", code=2)
    assert "need a CPU with avx512_vnni or avx_vnni, which this one has not" in said
    assert "export with --quantization rtn" in said


@computes_by_rows
def test_a_cpu_without_vnni_verifies_nothing(llama, export_to, tmp_path, become, capsys):
    export_to(llama, tmp_path, precision=BY_ROWS)
    become("avx512f")
    assert cli.main(["verify", str(tmp_path / llama.name), "--checkpoint", str(llama)]) == 1
    assert "need a CPU with avx512_vnni or avx_vnni" in capsys.readouterr().err


@computes_by_rows
def test_the_doctor_and_inspect_say_what_the_cpu_needs(llama, export_to, tmp_path, become):
    exported = export_to(llama, tmp_path, precision=BY_ROWS)
    assert "needs avx512_vnni or avx_vnni" in report.inspected(
        exported.folders[llama.name], exported.manifest
    )

    def found():
        checks = doctor.examine(tmp_path, images.image("26.08"), doctor.Machine())
        assert [each.status for each in checks if each.what == "operators"] == ["ok"]
        return {each.model: (each.status, each.why) for each in checks if each.what == "CPU"}

    for flag, said in (
        ("avx_vnni", ("ok", "avx512_vnni or avx_vnni is needed, and there")),
        (
            "avx512f",
            ("problem", "avx512_vnni or avx_vnni is needed, which this machine's lacks: sums would saturate"),
        ),
    ):
        become(flag)
        assert found() == dict.fromkeys(exported.folders, said)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "int4"}, "smoothquant goes with int8"),
        ({"name": "fp32"}, "fp32 is not quantized"),
        ({"name": "int8", "symmetric": True}, "--symmetric goes with rtn"),
        ({"name": "int8", "compute": "fp16"}, "smoothquant does not go with --compute fp16"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        chosen(algorithm="smoothquant", **arguments)
