"""`gptport package`: directories that other exporters wrote, see foreign/make.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from gptport import integrity
from gptport import manifest as manifests
from gptport.cli import main
from gptport.errors import CheckpointError, UnsupportedModel, UsageError
from graph_edits import edited, keep_logits
from graph_edits import rename as rename_input

FOREIGN = Path(__file__).parent / "foreign"


@pytest.mark.parametrize(("name", "precision"), [("genai-fp32", "fp32"), ("genai-int4", "int4")])
def test_a_graph_of_genais_builder_becomes_both_models(copied, packaged, name, precision):
    folder = copied(name)
    weights = (folder / "model.onnx.data").read_bytes()
    result = packaged(folder)
    text, step = result.folders.values()
    assert step.resolve() == text
    assert (text / "model.onnx.data").read_bytes() == weights
    manifest = manifests.read(text)
    assert (manifest.precision, manifest.max_length, manifest.source["format"]) == (precision, 128, "onnx")
    assert not integrity.damage(text, manifest)
    assert {tensor.name for tensor in manifest.inputs[:3]} == {"input_ids", "position_ids", "seqlens_k"}
    assert result.parity.greedy_agreement == 1.0
    assert result.parity.max_abs_logit_difference < 1e-4 < 1 < result.parity.max_abs_logit


def test_a_graph_of_that_kind_may_lie_as_transformers_js_has_it(copied, packaged):
    folder = edited(copied("genai-fp32"), keep_logits)
    (folder / "genai_config.json").unlink()
    shutil.copy(FOREIGN / "optimum-llama/config.json", folder)
    (folder / "onnx").mkdir()
    for file in ("model.onnx", "model.onnx.data"):
        (folder / file).rename(folder / "onnx" / file)
    result = packaged(folder)
    assert result.folders.keys() == {"tiny", "tiny_step"}
    assert {tensor.name for tensor in result.manifest.inputs[:3]} == {
        "input_ids",
        "position_ids",
        "seqlens_k",
    }
    assert result.parity.max_abs_logit_difference < 1e-4


def test_the_command_says_what_it_compared_with(copied, tmp_path, capsys):
    folder = copied("genai-int4")
    assert (
        main(["package", str(folder), "--repository", str(tmp_path / "repository"), "--max-length", "64"])
        == 0
    )
    said = capsys.readouterr().out
    assert f"{folder / 'model.onnx'}; there is no checkpoint" in said
    assert "by the original graph" in said
    assert main(["inspect", str(tmp_path / "repository/genai-int4")]) == 0
    assert "largest difference to the original graph" in capsys.readouterr().out


def give_only_the_last(graph: ir.Graph) -> None:
    graph.outputs[0].shape = ir.Shape(["batch_size", 1, 384])


def use_the_mask(graph: ir.Graph) -> None:
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    ids = graph.inputs[0]
    product = ir.node("Mul", [ids, mask], name="masked")
    graph.insert_before(graph[0], [product])
    embedding = next(node for node in graph if ids in node.inputs and node is not product)
    embedding.replace_input_with(list(embedding.inputs).index(ids), product.outputs[0])


def bend_the_logits(graph: ir.Graph) -> None:
    bent = ir.node("Softmax", [graph.outputs[0]])
    bent.outputs[0].type, bent.outputs[0].shape = graph.outputs[0].type, graph.outputs[0].shape
    graph.append(bent)
    graph.outputs[0].name, bent.outputs[0].name = "raw", "logits"
    graph.outputs[0] = bent.outputs[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_input("input_ids", "tokens"), "has no input input_ids"),
        (rename_input("attention_mask", "position_ids"), "has no input attention_mask"),
        (rename_input("past_key_values.1.value", "past_1"), "has an input past_1; expected no others than"),
        (
            rename_input("past_key_values.1.value", "past_key_values.2.value"),
            "has no past_key_values.1.value",
        ),
        (give_only_the_last, r"logits is \[batch_size, 1, 384\]; expected"),
        (use_the_mask, "Mul masked takes attention_mask; expected"),
        (bend_the_logits, "expected logits to be a MatMul or MatMulNBits"),
    ],
)
def test_what_is_not_recognised_is_refused_with_the_tensors_name(copied, packaged, tmp_path, change, message):
    with pytest.raises(UnsupportedModel, match=message):
        packaged(edited(copied("genai-fp32"), change))
    assert not any((tmp_path / "repository").glob("*"))
    assert not any(tmp_path.glob(".gptport*"))


def test_a_directory_that_lacks_something_is_refused(copied, packaged, tmp_path):
    folder = copied("genai-fp32")
    with pytest.raises(UsageError, match="--max-length 129 is not allowed: genai-fp32 takes 2 to 128 tokens"):
        packaged(folder, max_length=129)
    config = json.loads((folder / "genai_config.json").read_bytes())
    config["model"]["decoder"]["num_hidden_layers"] = 3
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="has a cache of 2 layers; expected 3"):
        packaged(folder)
    shutil.copy(folder / "model.onnx", folder / "decoder.onnx")
    with pytest.raises(
        UnsupportedModel, match=r"2 graphs with a cache, decoder\.onnx, model\.onnx; give the file"
    ):
        packaged(folder)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"has weights in model\.onnx\.data, which is not in"):
        packaged(folder / "model.onnx")
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be read as ONNX"):
        packaged(folder / "model.onnx")
    (folder / "genai_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has neither genai_config\.json nor config\.json"):
        packaged(folder)
    assert not any((tmp_path / "repository").glob("*"))


CHECKPOINT = FOREIGN / "optimum-llama/checkpoint"


@pytest.mark.parametrize("name", ["genai-fp32", "genai-int4", "optimum-llama"])
def test_a_packaged_graph_is_compared_with_a_checkpoint_where_one_is_given(
    copied, packaged, gpt2, tmp_path, capsys, name
):
    packaged(copied(name))
    model = str(next((tmp_path / "repository").iterdir()))
    assert main(["verify", model, "--checkpoint", str(CHECKPOINT)]) == 0
    said = capsys.readouterr().out
    difference = float(re.search(r"logits differ by at most (\S+),", said).group(1))
    # The int4 graph was made of the same weights, rounded.
    assert 0 < difference < 1e-4 if name != "genai-int4" else 0.1 < difference < 4
    assert main(["verify", model, "--checkpoint", str(gpt2)]) == 1
    assert "was made from: it has" in capsys.readouterr().err


def test_another_checkpoint_of_that_shape_is_found(copied, packaged, tmp_path, capsys):
    packaged(copied("genai-fp32"))
    other = shutil.copytree(CHECKPOINT, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.01
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    assert main(["verify", str(tmp_path / "repository/tiny"), "--checkpoint", str(other)]) == 1
    said = capsys.readouterr().err
    assert "the graph differs from the original by" in said
    assert "Nothing was written" not in said
