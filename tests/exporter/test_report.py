"""report.html: it says what was measured, needs nothing from elsewhere, escapes what a checkpoint names, and fits a telephone."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from gptport import cli, integrity, manifest, report_page
from gptport.precision import by_name
from gptport.report_page.charts import Axes
from gptport.report_page.layered import layout
from gptport.report_page.numbers import change, number
from html_page import Read

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture
def result(checkpoint, exported):
    return exported(checkpoint)


@pytest.fixture
def page(result):
    return result.report.read_text()


def facts(result, **changes):
    spec = changes.pop("spec")
    found = report_page.Facts(
        result.manifest, spec, result.lowering, result.parity, by_name("fp32"), "gptport export x", ""
    )
    return replace(found, **changes)


def test_it_stands_beside_the_manifest_and_is_one_of_its_files(result):
    version = next(iter(result.folders.values()))
    assert result.report == version / "report.html"
    assert integrity.damage(version, manifest.read(version)) == []
    assert manifest.read(version).files["report.html"].bytes == result.report.stat().st_size


def test_it_says_what_the_manifest_says(result, page):
    text, known = Read(page).text, result.manifest
    measured = known.verification
    assert f"{measured['perplexity']:.5g}" in text
    assert f"{measured['greedy_agreement']:.1%} of {measured['tokens']} positions" in text
    assert f"{number(measured['max_abs_logit_difference'])}, of logits up to" in text
    assert known.source["sha256"] in text
    for tool, version in known.tools.items():
        assert f"{tool} {version}" in text
    for name, file in known.files.items():
        if name != "report.html":
            assert f"{name} {file.sha256} {file.bytes:,}" in text


def test_it_needs_nothing_from_elsewhere(page):
    read = Read(page)
    assert read.references == ["data:,"]
    assert not read.tags["script"]
    assert "url(" not in page
    assert set(re.findall(r"https?://[^\"]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_the_parts_are_as_large_as_the_weights(result):
    graph = onnx.load(next(iter(result.folders.values())) / result.manifest.graph).graph
    stored = sum(onnx.numpy_helper.to_array(each).nbytes for each in graph.initializer)
    assert sum(each.bytes for each in result.lowering.sizes) == stored


def test_parameters_are_those_of_the_checkpoint(gpt2, llama_untied, exported):
    sizes = {each.part: each.parameters for each in exported(llama_untied).lowering.sizes}
    attention, mlp = 64 * (64 + 32 + 32 + 64), 3 * 64 * 96
    assert sizes == {
        "embedding": 384 * 64,
        "attention": 3 * attention,
        "MLP": 3 * mlp,
        "norms": 7 * 64,
        "head": 384 * 64,
        "tables and constants": 0,
    }
    biases = {each.part: each.parameters for each in exported(gpt2).lowering.sizes}
    assert biases["attention"] == 3 * (64 * 192 + 192 + 64 * 64 + 64)


def test_every_layer_is_compared(result, page):
    layers = result.parity.layers
    assert [each.layer for each in layers] == [0, 1, 2]
    assert {each.positions for each in layers} == {21}
    assert all(0 < each.median <= each.largest < 1e-5 for each in layers)
    assert f"{number(layers[-1].median)} after the last" in Read(page).text


def test_layers_are_compared_of_a_graph_that_is_run_in_parts(llama, export_to, tmp_path, monkeypatch):
    monkeypatch.setattr("gptport.parts._WHOLE", 0)
    monkeypatch.setattr("gptport.parts._PART", 40_000)
    result = export_to(llama, tmp_path)
    assert result.parity.parts > 3
    assert [each.layer for each in result.parity.layers] == [0, 1, 2]
    assert f"in {result.parity.parts} parts" in Read(result.report.read_text()).text


def test_a_layer_that_is_wrong_shows(llama, export_to, tmp_path, monkeypatch):
    from gptport import reference

    def shifted(output):
        states.append(read(output))
        return states[-1] + (len(states) == 2)

    states, read = [], reference._watched
    monkeypatch.setattr(reference, "_watched", shifted)
    first, second, third = export_to(llama, tmp_path).parity.layers
    assert second.median > 1000 * max(first.median, third.median)


def test_the_picture_has_a_box_for_every_node(result, page):
    before, after = result.lowering.before, result.lowering.after
    assert Read(page).tags["rect"] == len(before.nodes) + len(after.nodes) + len(result.lowering.sizes)
    graph = onnx.load(
        next(iter(result.folders.values())) / result.manifest.graph, load_external_data=False
    ).graph
    written = Counter(node.op_type for node in graph.node)
    assert written["GroupQueryAttention"] == 3 * after.operators["GroupQueryAttention"] == 3


def test_names_of_a_checkpoint_are_escaped(result, checkpoint):
    from gptport.checkpoint import open_checkpoint

    evil = "<script>alert('&')</script>"
    known = result.manifest
    source = {**known.source, "checkpoint": evil, "model_type": evil}
    spec = replace(open_checkpoint(str(checkpoint)).spec, model_type=evil)
    node = replace(result.lowering.before.nodes[0], operator=evil, detail=evil)
    before = replace(result.lowering.before, nodes=(node, *result.lowering.before.nodes[1:]))
    made = report_page.page(
        facts(
            result,
            spec=spec,
            manifest=replace(known, source=source, files={**known.files, evil: known.files["model.onnx"]}),
            lowering=replace(result.lowering, before=before),
            command=evil,
        )
    )
    read = Read(made)
    assert not read.tags["script"]
    assert read.text.count("alert(") >= 7


def test_the_command_is_named_and_the_last_line_names_the_page(llama, tmp_path, capsys):
    assert cli.main(["export", str(llama), "--repository", str(tmp_path), "--name", "mine"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["report", f"{tmp_path}/mine/1/report.html"]
    text = Read((tmp_path / "mine" / "1" / "report.html").read_text()).text
    assert f"gptport export {llama} --repository {tmp_path} --name mine" in text


@pytest.mark.parametrize(
    ("value", "said"), [(0.31, "0.31"), (4.26e-6, "4.3 × 10⁻⁶"), (1e-7, "10⁻⁷"), (76.2, "76"), (0.0, "0")]
)
def test_numbers_are_written_as_people_do(value, said):
    assert number(value) == said


@pytest.mark.parametrize(("value", "said"), [(0.155, "+15.50%"), (-0.004, "−0.40%"), (-1e-9, "no change")])
def test_changes_have_a_sign_or_are_none(value, said):
    assert change(value) == said


@pytest.mark.parametrize(
    "values", [[0.0], [3e-8, 1.6e-7], [1e-6, 1e-3], [5.0, 5.0], [1e-12, 1e6], [0.0, 2e-5]]
)
def test_a_scale_holds_its_values_between_a_few_ticks(values):
    axes = Axes.around(64, values)
    assert 2 <= len(axes.ticks) <= 8
    assert all(axes.ticks[0] <= value <= axes.ticks[-1] for value in values if value)
    assert all(axes.y(axes.ticks[-1]) <= axes.y(value) <= axes.y(axes.ticks[0]) for value in values)


def test_boxes_stand_below_what_they_take_and_apart():
    """A layer with three projections, and an edge that passes them all."""
    edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4), (0, 5), (4, 5)]
    placed = layout([60, 90, 80, 70, 120, 50], edges, 10)
    assert placed.ranks == (0, 1, 1, 1, 2, 3)
    assert all(placed.ranks[a] < placed.ranks[b] for a, b in edges)
    left, middle, right = sorted(zip(placed.centers[1:4], (90, 80, 70), strict=True))
    assert left[0] + left[1] / 2 + 10 <= middle[0] - middle[1] / 2
    assert middle[0] + middle[1] / 2 + 10 <= right[0] - right[1] / 2
    assert len(placed.bends[0, 5]) == 2
    assert len(set(placed.bends[0, 5])) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_browser_shows_it_without_errors_at_any_width(llama, export_to, tmp_path, precision):
    pytest.importorskip("aiohttp")
    from browser import tab

    chosen = replace(by_name(precision), tolerance=9.0, max_perplexity_increase=np.inf)
    report = export_to(llama, tmp_path, precision=chosen).report

    async def look():
        async with tab(CHROMIUM, tmp_path / "profile", report.as_uri()) as page:
            for width in (1100, 760, 420):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
                await page.call("Emulation.setDeviceMetricsOverride", **size)
                assert await page.run("document.documentElement.scrollWidth") <= width
            assert page.errors == []

    asyncio.run(look())
