"""onnxruntime-genai, the real one, runs a version folder and generates what our graph does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime_genai
import pytest
from tokenizers import Tokenizer

from gptport import cli, genai, manifest, report
from gptport.checkpoint import open_checkpoint
from gptport.precision import by_name

NEW_TOKENS = 12


@pytest.fixture(autouse=True, scope="module")
def silent():
    onnxruntime_genai.disable_telemetry_events()


@pytest.fixture(scope="session")
def version_of(tmp_path_factory, export_to):
    """The version folder of a checkpoint in a precision, made once."""
    repository, known = tmp_path_factory.mktemp("genai"), {}

    def get(checkpoint, precision="fp32"):
        key = checkpoint.name, precision
        if key not in known:
            exported = export_to(checkpoint, repository / precision, precision=by_name(precision))
            known[key] = exported.folders[checkpoint.name]
        return known[key]

    return get


def prompts(*lengths):
    return [np.random.default_rng(n).integers(1, 384, n).tolist() for n in lengths]


def greedy(run, prompt):
    """What our graph generates, without an end of text, and the logits [vocab] of what would come next."""
    ids, new = [], prompt
    for _ in range(NEW_TOKENS):
        logits = run.append(new).copy()
        logits[list(run.manifest.tokens.eos)] = -np.inf
        new = [int(logits.argmax())]
        ids += new
    return ids, run.append(new)


def generator_of(folder, rows=1, **options):
    model = onnxruntime_genai.Model(str(folder))
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(batch_size=rows, **options)
    return onnxruntime_genai.Generator(model, params)


def in_genai(folder, rows, **options):
    """The same from onnxruntime-genai, for each row; it pads rows on the right."""
    longest = max(map(len, rows))
    length = longest + NEW_TOKENS + 1
    pad = json.loads((folder / genai.CONFIG).read_text())["model"]["pad_token_id"]
    generator = generator_of(folder, len(rows), min_length=length, max_length=length, **options)
    generator.append_tokens(np.array([[*row, *[pad] * (longest - len(row))] for row in rows], np.int32))
    for _ in range(NEW_TOKENS):
        generator.generate_next_token()
    logits = generator.get_logits()[:, 0]
    return [(generator.get_sequence(row)[longest:].tolist(), logits[row]) for row in range(len(rows))]


def assert_same(got, expected):
    assert [ids for ids, _ in got] == [ids for ids, _ in expected]
    for (_, logits), (_, ours) in zip(got, expected, strict=True):
        np.testing.assert_allclose(logits, ours, rtol=0, atol=1e-3 * np.abs(ours).max())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_it_generates_the_tokens_of_our_graph_alone_and_in_a_padded_batch(
    checkpoint, precision, version_of, start
):
    version, rows = version_of(checkpoint, precision), prompts(5, 9, 3)
    expected = [greedy(start(version), row) for row in rows]
    assert_same([in_genai(version, [row])[0] for row in rows], expected)
    assert_same(in_genai(version, rows), expected)


def test_a_prompt_in_pieces_and_a_cache_that_is_not_shared_change_nothing(checkpoint, version_of, start):
    version, (prompt,) = version_of(checkpoint), prompts(14)
    generator = generator_of(version, min_length=14 + NEW_TOKENS, max_length=14 + NEW_TOKENS)
    for piece in (prompt[:6], prompt[6:7], prompt[7:]):
        generator.append_tokens(np.array(piece, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    expected = greedy(start(version), prompt)
    assert generator.get_sequence(0)[14:].tolist() == expected[0]
    assert_same(in_genai(version, [prompt], past_present_share_buffer=False), [expected])


def test_the_defaults_of_the_checkpoint_are_its_own_and_any_of_its_ends_ends(llama, copy, version_of, start):
    checkpoint, (prompt,) = copy(llama), prompts(5)
    expected, _ = greedy(start(version_of(llama)), prompt)
    end = expected[4]
    defaults = {"temperature": 0.5, "top_k": 7, "top_p": 0.75, "do_sample": True, "repetition_penalty": 1.25}
    (checkpoint / "generation_config.json").write_text(
        json.dumps({**defaults, "eos_token_id": [383, end], "min_p": 0.5, "no_repeat_ngram_size": None})
    )
    version = version_of(checkpoint)
    options = onnxruntime_genai.GeneratorParams(onnxruntime_genai.Model(str(version))).get_search_options()
    assert {name: options[name] for name in defaults} == defaults
    assert options["max_length"] == manifest.read(version).max_length
    generator = generator_of(version, do_sample=False, repetition_penalty=1.0)
    generator.append_tokens(np.array(prompt, np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist() == [*prompt, *expected[: expected.index(end)]]


def test_its_tokenizer_reads_the_tokenizers_files(gpt2, version_of):
    version, text = version_of(gpt2), "Hello there, it's 1999!\n  ok"
    tokenizer = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(version)))
    ids = Tokenizer.from_file(str(version / "tokenizer.json")).encode(text).ids
    assert tokenizer.encode(text).tolist() == ids
    assert tokenizer.decode(np.array(ids, np.int32)) == text


def test_the_weights_are_on_disk_once(checkpoint, version_of):
    version = version_of(checkpoint)
    served, second = (
        onnx.load(version / name, load_external_data=False) for name in ("model.onnx", genai.GRAPH)
    )
    places = [
        {each.name: [(entry.key, entry.value) for entry in each.external_data] for each in graph.initializer}
        for graph in (served.graph, second.graph)
    ]
    assert places[1] == places[0]
    assert len(second.graph.node) == len(served.graph.node) + 3


def test_a_model_with_layers_of_several_kinds_is_exported_without(gpt2, tmp_path, export_to, monkeypatch):
    found = manifest.read(export_to(gpt2, tmp_path / "as it is").folders["gpt2"])
    assert genai.obstacle(found) is None
    wide = replace(found.inputs[4], shape=("batch", 8, "max_length", 16))
    why = genai.obstacle(replace(found, inputs=(*found.inputs[:4], wide, *found.inputs[5:])))
    assert why.startswith("past_key_values.0.value is [batch, 8, max_length, 16], and for onnxruntime-genai")

    monkeypatch.setattr(genai, "obstacle", lambda _: why)
    exported = export_to(gpt2, tmp_path / "without")
    assert not {genai.GRAPH, genai.CONFIG} & exported.manifest.files.keys()
    assert not list(exported.folders["gpt2"].glob("genai*"))
    assert f"left out: {why}" in report.exported(exported, open_checkpoint(str(gpt2)))


def test_inspect_says_that_it_is_there(gpt2, version_of, capsys):
    assert cli.main(["inspect", str(version_of(gpt2))]) == 0
    assert "genai_config.json, genai.onnx: onnxruntime-genai loads the folder" in capsys.readouterr().out
