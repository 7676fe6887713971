"""`gptport package` of graphs whose cache grows, as optimum and transformers.js have them; see foreign/make.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from gptport import integrity
from gptport import manifest as manifests
from gptport.cli import main
from gptport.errors import (
    RepositoryError,
    UnsupportedModel,
    UsageError,
    VerificationError,
)
from gptport.server import models_of
from gptport.triton_config import Serving, parse
from graph_edits import constant, edited, input_of, keep_logits, rename

FOREIGN = Path(__file__).parent / "foreign"


@pytest.mark.parametrize(
    ("name", "file", "inputs"),
    [
        ("optimum-llama", "model.onnx", ["input_ids", "attention_mask", "position_ids"]),
        (
            "optimum-merged",
            "decoder_model_merged.onnx",
            ["input_ids", "attention_mask", "position_ids", "use_cache_branch"],
        ),
    ],
)
def test_a_graph_becomes_a_step_model_as_it_is(copied, packaged, name, file, inputs):
    folder = copied(name)
    result = packaged(folder)
    ((step, version),) = result.folders.items()
    assert step == "tiny_step"
    assert sorted(path.name for path in version.parents[1].iterdir()) == ["tiny_step"]
    assert (version / file).read_bytes() == (folder / file).read_bytes()
    manifest = manifests.read(version)
    assert manifest == result.manifest
    assert (manifest.graph, manifest.logits, manifest.kv_cache.grows, manifest.name) == (
        file,
        "all",
        True,
        "tiny",
    )
    assert not integrity.damage(version, manifest)
    config = parse(version.parent / "config.pbtxt")
    assert (config.backend, config.max_batch_size, config.default_model_filename) == ("onnxruntime", 0, file)
    assert config.parameters["gptport_kind"].string_value == "growing"
    declared = {each.name: list(each.dims) for each in (*config.input, *config.output)}
    heads, width = manifest.kv_cache.kv_heads, manifest.kv_cache.head_dim
    assert list(declared)[: len(inputs)] == inputs
    assert declared["attention_mask"] == [-1, -1]
    assert declared["past_key_values.1.value"] == declared["present.1.value"] == [-1, heads, -1, width]
    assert declared["logits"] == [-1, -1, 384]
    assert result.parity.greedy_agreement == 1.0
    assert 0 < result.parity.max_abs_logit_difference < 1e-4 < 1 < result.parity.max_abs_logit


def test_the_command_says_what_cannot_be_done(copied, tmp_path, capsys):
    folder = copied()
    assert main(["package", str(folder), "--repository", str(tmp_path / "repository")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "optimum-llama, text in and text out, is not made" in said
    assert "it grows: the client holds it, sends it with each request" in said
    assert "--loop client --tokenizer" in said
    step = tmp_path / "repository/optimum-llama_step"
    assert main(["inspect", str(step)]) == 0
    said = capsys.readouterr().out
    assert "grows with the text" in said
    assert "of every position; largest difference to the graph without its cache" in said
    assert main(["inspect", "--graph", str(step)]) == 0
    assert "MatMul" in capsys.readouterr().out
    assert main(["verify", str(step)]) == 0
    (step / "1/model.onnx").write_bytes(b"")
    assert main(["verify", str(step)]) == 1


def test_a_second_version_is_rolled_back_and_doctor_looks_at_it(copied, packaged, tmp_path, capsys):
    folder = copied()
    packaged(folder)
    packaged(folder, keep=1)
    step = tmp_path / "repository/tiny_step"
    assert manifests.version_folder(step).name == "2"
    for model in (step, tmp_path / "repository/tiny"):
        assert main(["rollback", str(model), "--to", "1"]) == 0
        assert manifests.version_folder(step).name == "1"
    assert "tiny_step: version 1" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "repository"), "--image", "26.08-py3"]) == 0
    said = capsys.readouterr().out
    assert "as the manifest says" in said
    assert "0 sequences" in said


def count_positions(graph: ir.Graph, *, past: bool = True) -> None:
    """Compute position_ids from the mask's length and the tokens', as older graphs do; or forget the past."""
    positions = input_of(graph, "position_ids")
    whole = input_of(graph, "attention_mask") if past else input_of(graph, "input_ids")
    ones = ir.node("Shape", [whole], {"start": 1, "end": 2})
    tokens = ir.node("Shape", [input_of(graph, "input_ids")], {"start": 1, "end": 2})
    first = ir.node("Sub", [ones.outputs[0], tokens.outputs[0]])
    axis, step = constant(graph, "axis.0", [0]), constant(graph, "step.1", 1)
    begin, end = (ir.node("Squeeze", [each.outputs[0], axis]) for each in (first, ones))
    counted = ir.node("Range", [begin.outputs[0], end.outputs[0], step])
    rows = ir.node("Unsqueeze", [counted.outputs[0], axis])
    graph.insert_before(graph[0], [ones, tokens, first, begin, end, counted, rows])
    ir.convenience.replace_all_uses_with(positions, rows.outputs[0])
    graph.inputs.remove(positions)


def without_mask(graph: ir.Graph) -> None:
    """Make the mask of ones from the lengths."""
    mask, past = input_of(graph, "attention_mask"), input_of(graph, "past_key_values.0.key")
    lengths = [
        ir.node("Shape", [input_of(graph, "input_ids")], {"start": start, "end": end})
        for start, end in ((0, 1), (1, 2))
    ]
    before = ir.node("Shape", [past], {"start": 2, "end": 3})
    total = ir.node("Add", [lengths[1].outputs[0], before.outputs[0]])
    shape = ir.node("Concat", [lengths[0].outputs[0], total.outputs[0]], {"axis": 0})
    ones = ir.node("Expand", [constant(graph, "one", [1]), shape.outputs[0]])
    graph.insert_before(graph[0], [*lengths, before, total, shape, ones])
    ir.convenience.replace_all_uses_with(mask, ones.outputs[0])
    graph.inputs.remove(mask)


def halve(graph: ir.Graph) -> None:
    """Cache and logits in float16, as `model_fp16.onnx` and `model_q4f16.onnx` have them."""
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            wide = ir.node("Cast", [value], {"to": ir.DataType.FLOAT})
            ir.convenience.replace_all_uses_with(value, wide.outputs[0])
            wide.replace_input_with(0, value)
            graph.insert_before(graph[0], [wide])
            value.type = ir.TensorType(ir.DataType.FLOAT16)
    for i, value in enumerate(list(graph.outputs)):
        narrow = ir.node("Cast", [value], {"to": ir.DataType.FLOAT16})
        graph.append(narrow)
        (half,) = narrow.outputs
        half.name, value.name = value.name, f"{value.name}.wide"
        half.type, half.shape = ir.TensorType(ir.DataType.FLOAT16), value.shape
        graph.outputs[i] = half


@pytest.mark.parametrize(
    ("change", "inputs", "precision"),
    [
        (count_positions, {"input_ids", "attention_mask"}, "fp32"),
        (without_mask, {"input_ids", "position_ids"}, "fp32"),
        (keep_logits, {"input_ids", "attention_mask", "position_ids", "num_logits_to_keep"}, "fp32"),
        (halve, {"input_ids", "attention_mask", "position_ids"}, "fp16"),
    ],
)
def test_other_inputs_and_precisions_go_too(copied, packaged, change, inputs, precision):
    manifest = packaged(edited(copied(), change)).manifest
    caches = {each.past for each in manifest.kv_cache.tensors}
    assert {each.name for each in manifest.inputs} - caches == inputs
    assert manifest.precision == precision
    assert manifest.kv_cache.dtype == {"fp32": "float32", "fp16": "float16"}[precision]


def quantized_dynamically(path: Path) -> None:
    quantize_dynamic(path, path, weight_type=QuantType.QInt8, extra_options={"MatMulConstBOnly": True})


def quantized_in_blocks(path: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=16, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=False)


@pytest.mark.parametrize(
    ("quantize", "precision"), [(quantized_dynamically, "int8"), (quantized_in_blocks, "int4")]
)
def test_a_quantized_graph_goes_as_it_is(copied, packaged, quantize, precision):
    folder = copied()
    quantize(folder / "model.onnx")
    result = packaged(folder)
    assert (result.manifest.precision, result.manifest.kv_cache.dtype) == (precision, "float32")
    version = result.folders["tiny_step"]
    assert (version / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()


def forget_the_past(graph: ir.Graph) -> None:
    count_positions(graph, past=False)


def give_only_what_is_new(graph: ir.Graph) -> None:
    for i, value in enumerate(graph.outputs):
        if value.name == "present.0.key":
            (new,) = (each for each in value.producer().inputs if not each.is_graph_input())
            copy = ir.node("Identity", [new])
            graph.append(copy)
            copy.outputs[0].name, value.name = value.name, "longer"
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            graph.outputs[i] = copy.outputs[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            forget_the_past,
            r"differs from the original by .* \(rows of text in two chunks and single tokens\)",
        ),
        (give_only_what_is_new, r"gives present\.0\.key \[1, 1, 30, 16\] of 61 tokens; expected \[1, 1, 61"),
    ],
)
def test_a_cache_that_is_something_else_is_found(copied, packaged, tmp_path, change, message):
    with pytest.raises(VerificationError, match=message):
        packaged(edited(copied(), change))
    assert not any((tmp_path / "repository").glob("*"))


def reshape_caches(*shape, kind: str = ""):
    def change(graph: ir.Graph) -> None:
        for value in (*graph.inputs, *graph.outputs):
            if str(value.name).endswith(kind or ("key", "value")):
                value.shape = ir.Shape(shape)

    return change


def fix_the_sequence(graph: ir.Graph) -> None:
    input_of(graph, "input_ids").shape = ir.Shape(["batch", 1])


def brain_floats(graph: ir.Graph) -> None:
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name).endswith(("key", "value")):
            value.type = ir.TensorType(ir.DataType.BFLOAT16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # BLOOM's and Falcon's, as transformers had them before 4.44
        (
            reshape_caches("batch x heads", 16, "past"),
            r"key is FLOAT \[batch x heads, 16, past\]; expected FLOAT",
        ),
        (
            reshape_caches("batch", 1, 16, "past"),
            r"key is \[batch, 1, 16, past\]; expected \[batch, kv_heads",
        ),
        (reshape_caches("batch", "heads", "past", 16), "heads, past, 16]; expected"),
        (reshape_caches("batch", 1, 7, 16), "expected a length that may vary"),
        (
            rename("past_key_values.0.key", "past_key_values.0.key_value"),
            "has an input past_key_values.0.key_v",
        ),
        (rename("position_ids", "token_type_ids"), "has an input token_type_ids; expected no others"),
        (rename("input_ids", "tokens"), "has an input tokens|has no input input_ids"),
        (fix_the_sequence, r"input_ids is \[batch, 1\]; expected a number of tokens that may vary"),
        (brain_floats, r"past_key_values\.0\.key is BFLOAT16, which onnxruntime does not run on the CPU"),
    ],
)
def test_another_layout_is_refused_by_the_tensors_name(copied, packaged, tmp_path, change, message):
    with pytest.raises(UnsupportedModel, match=message):
        packaged(edited(copied(), change))
    assert not any((tmp_path / "repository").glob("*"))


def test_weights_beside_the_graph_come_along(copied, packaged):
    folder = copied()
    onnx.save(
        onnx.load(folder / "model.onnx"),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    result = packaged(folder)
    version = result.folders["tiny_step"]
    assert (version / "model.onnx_data").read_bytes() == (folder / "model.onnx_data").read_bytes()
    assert result.parity.greedy_agreement == 1.0


def test_names_and_options_that_do_not_go_are_refused(copied, packaged, tmp_path):
    folder = copied()
    with pytest.raises(UsageError, match="--step-cache both is for a cache of fixed size"):
        packaged(folder, serving=Serving(step_cache="both"))
    fixed = shutil.copytree(FOREIGN / "genai-fp32", tmp_path / "genai-fp32")
    shutil.copy(folder / "tokenizer.json", fixed)
    packaged(fixed)
    with pytest.raises(
        RepositoryError, match=r"is there, with a cache of fixed size; .* choose another --name"
    ):
        packaged(folder)
    assert packaged(folder, "other").folders.keys() == {"other_step"}
    both = packaged(fixed, "other").folders
    assert both["other_step"].resolve() == both["other"]
    assert both["other"].name == "2"


def test_it_is_served_by_the_name_that_it_was_given(packaged, copied, tmp_path):
    packaged(copied())
    assert models_of(tmp_path / "repository", ["tiny"]) == ["tiny_step"]
    with pytest.raises(RepositoryError, match="has no model 'other'; it has tiny_step"):
        models_of(tmp_path / "repository", ["other"])
