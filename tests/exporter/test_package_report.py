"""report.html of a graph that was packaged: what is known without a checkpoint, and nothing else."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from rich.filesize import decimal

from gptport import integrity
from gptport.cli import main
from gptport.foreign_layers import examined
from html_page import Read

FOREIGN = Path(__file__).parent / "foreign"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
GRAPHS = {
    "genai-fp32": "model.onnx",
    "genai-int4": "model.onnx",
    "optimum-llama": "model.onnx",
    "optimum-merged": "decoder_model_merged.onnx",
}


@pytest.mark.parametrize("name", GRAPHS)
def test_it_says_what_is_known_and_is_a_file_of_the_version(copied, packaged, name):
    result = packaged(copied(name), command="gptport package x")
    version, manifest = next(iter(result.folders.values())), result.manifest
    assert result.report == version / "report.html"
    assert not integrity.damage(version, manifest)
    read = Read(result.report.read_text())
    assert f"ONNX graph {GRAPHS[name]} of {name}" in read.text
    assert "There was no checkpoint" in read.text
    assert "gptport package x" in read.text
    assert "it grows, and travels with each request" in read.text or not manifest.kv_cache.grows
    for said in (
        manifest.source["sha256"],
        f"{manifest.vocab_size:,} tokens",
        f"{result.parity.perplexity:.5g}",
    ):
        assert said in read.text
    assert "Passes" not in read.text
    assert "By layer" not in read.text
    assert not read.tags["script"]
    assert [each for each in read.references if not each.startswith("data:")] == []


@pytest.mark.parametrize("name", GRAPHS)
def test_the_parts_are_as_large_as_the_weights(name):
    path = FOREIGN / name / GRAPHS[name]
    found = {each.part: each.bytes for each in examined(ir.load(path), 2).sizes}
    weights = {value.name: value for value in onnx.load(path).graph.initializer}
    embedding = next(value for word, value in weights.items() if re.search("embed_tokens|wte", word))
    position = [value for word, value in weights.items() if "wpe" in word]
    assert found["embedding"] == sum(
        onnx.numpy_helper.to_array(value).nbytes for value in (embedding, *position)
    )
    assert found.keys() == {"embedding", "attention", "MLP", "norms", "head", "tables and constants"}
    bias = 2 if name == "optimum-merged" else 1
    assert found["norms"] == 5 * bias * 16 * 4
    if name in ("genai-fp32", "optimum-llama"):
        assert found["attention"] == 2 * 4 * (16 * 32 + 2 * 16 * 16 + 32 * 16)
        assert found["MLP"] == 2 * 4 * 3 * 16 * 32


def test_the_picture_has_a_box_for_each_node_that_hidden_states_go_through(copied, packaged):
    result = packaged(copied("genai-int4"))
    layer = examined(ir.load(FOREIGN / "genai-int4/model.onnx"), 2).layer
    assert layer.operators["MatMulNBits"] == 5
    assert layer.operators["GroupQueryAttention"] == 1
    read = Read(result.report.read_text())
    assert read.tags["rect"] == len(layer.nodes) + 6
    assert "Layer 1: 11 of 11 nodes" in read.text


def test_of_nodes_without_names_no_layer_is_told():
    model = ir.load(FOREIGN / "optimum-llama/model.onnx")
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"node_{number}"
    found = examined(model, 2)
    assert found.layer is None
    assert [each.part for each in found.sizes] == ["weights"]
    assert found.bytes == examined(ir.load(FOREIGN / "optimum-llama/model.onnx"), 2).bytes


def test_the_command_ends_with_the_page(gpt2, tmp_path, capsys):
    folder = shutil.copytree(FOREIGN / "optimum-llama", tmp_path / "mine")
    shutil.copy(gpt2 / "tokenizer.json", folder)
    assert main(["package", str(folder), "--repository", str(tmp_path / "repository")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == [
        "report",
        f"{tmp_path}/repository/mine_step/1/report.html",
    ]
    text = Read((tmp_path / "repository/mine_step/1/report.html").read_text()).text
    assert f"gptport package {folder} --repository {tmp_path}/repository" in text
    assert decimal(examined(ir.load(folder / "model.onnx"), 2).bytes) in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
def test_a_browser_shows_it_without_errors_at_any_width(copied, packaged, tmp_path):
    pytest.importorskip("aiohttp")
    from browser import tab

    report = packaged(copied()).report

    async def look():
        async with tab(CHROMIUM, tmp_path / "profile", report.as_uri()) as page:
            for width in (1100, 420):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
                await page.call("Emulation.setDeviceMetricsOverride", **size)
                assert await page.run("document.documentElement.scrollWidth") <= width
            assert page.errors == []

    asyncio.run(look())
