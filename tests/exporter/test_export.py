"""From a checkpoint to two models in a repository: what is written, and that it is right."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.numpy_helper import to_array

from folders import files_of
from gptport import cli, manifest
from gptport import graph as graphs
from gptport.triton_config import Serving, parse

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
FLOAT32, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def operators(version):
    return [node.op_type for node in onnx.load(version / GRAPH, load_external_data=False).graph.node]


def head(version):
    return onnx.load(version / GRAPH, load_external_data=False).graph.node[-1]


def initializer(version, name):
    (found,) = (each for each in onnx.load(version / GRAPH).graph.initializer if each.name == name)
    return to_array(found)


def tokens(count):
    return np.random.default_rng(0).integers(1, 384, count).tolist()


def assert_same_logits(got, expected):
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_an_export_writes_a_text_model_and_a_step_model(checkpoint, exported):
    folders, name = exported(checkpoint).folders, checkpoint.name
    assert list(folders) == [name, f"{name}_step"]
    for model, version in folders.items():
        assert version.name == "1"
        assert (version / GRAPH).is_file()
        assert f'name: "{model}"' in (version.parent / "config.pbtxt").read_text()


def test_a_step_model_that_is_there_gets_the_new_version_whichever_was_asked_for(gpt2, export_to, tmp_path):
    for version, (cache, there) in enumerate((("client", ["_kv"]), ("server", ["_step", "_kv"])), 1):
        folders = export_to(gpt2, tmp_path, serving=Serving(step_cache=cache)).folders
        assert list(folders) == [gpt2.name, *(gpt2.name + suffix for suffix in there)]
        for folder in folders.values():
            assert (folder.name, (folder / GRAPH).is_file()) == (str(version), True)
            assert parse(folder.parent / "config.pbtxt").version_policy.specific.versions == [version]


def test_a_version_holds_the_graph_its_weights_the_tokenizer_and_the_manifest(checkpoint, exported):
    version = exported(checkpoint).folders[checkpoint.name]
    assert {path.name for path in version.iterdir()} == {
        GRAPH,
        WEIGHTS,
        f"{checkpoint.name}.pbtxt",
        f"{checkpoint.name}_step.pbtxt",
        "genai.onnx",
        "genai_config.json",
        "generation_config.json",
        "manifest.json",
        "report.html",
        "sampler.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_the_manifest_has_size_and_hash_of_every_other_file(checkpoint, exported):
    version = exported(checkpoint).folders[checkpoint.name]
    files = manifest.read(version).files
    configurations = {f"{checkpoint.name}.pbtxt", f"{checkpoint.name}_step.pbtxt"}
    assert files.keys() == {path.name for path in version.iterdir()} - {"manifest.json"} - configurations
    for name, file in files.items():
        content = (version / name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_weights_of_both_models_are_on_disk_once(checkpoint, exported):
    text, step = exported(checkpoint).folders.values()
    assert step.is_symlink()
    assert str(step.readlink()) == f"../{checkpoint.name}/1"
    assert (step / WEIGHTS).samefile(text / WEIGHTS)


def test_a_tied_head_shares_the_embeddings_weight(llama, llama_untied, exported):
    tied, untied = (exported(each).folders[each.name] for each in (llama, llama_untied))
    assert head(tied).input[1] == "model.embed_tokens.weight"
    assert head(untied).input[1] == "lm_head.weight"
    embedding = 4 * 384 * 64
    assert (untied / WEIGHTS).stat().st_size - (tied / WEIGHTS).stat().st_size == embedding


def test_onnx_reads_the_graph_and_onnxruntime_runs_it(checkpoint, exported, start):
    version = exported(checkpoint).folders[checkpoint.name]
    loaded = onnx.load(version / GRAPH)
    assert {each.domain: each.version for each in loaded.opset_import} == {"": 21, "com.microsoft": 1}
    assert loaded.ir_version == 10
    assert np.isfinite(start(version).append([1, 2, 3])).all()


def test_the_graph_has_the_inputs_and_outputs_of_the_manifest(checkpoint, exported, start):
    run = start(exported(checkpoint).folders[checkpoint.name])
    for got, expected in (
        (run.session.get_inputs(), run.manifest.inputs),
        (run.session.get_outputs(), run.manifest.outputs),
    ):
        assert [(each.name, each.shape) for each in got] == [
            (each.name, list(each.shape)) for each in expected
        ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_untied", "llama_sharded", "gpt2_by_layer"])
def test_logits_are_those_of_torch_up_to_the_last_position(
    name, request, export_to, tmp_path, start, in_torch
):
    checkpoint, length = request.getfixturevalue(name), 48
    version = export_to(checkpoint, tmp_path, max_length=length).folders[name]
    run, ids = start(version), tokens(length)
    expected = in_torch(checkpoint, ids)
    assert_same_logits(run.append(ids[:40]), expected[39])
    for position in range(40, length):
        assert_same_logits(run.append([ids[position]]), expected[position])
    assert_same_logits(start(version).append(ids), expected[-1])


def test_logits_of_other_positions_may_be_asked_for(gpt2, exported, in_torch):
    version, ids = exported(gpt2).folders["gpt2"], tokens(24)
    session = onnxruntime.InferenceSession(version / GRAPH)
    feeds = {
        value.name: np.zeros((2, value.shape[1], 24, value.shape[3]), np.float32)
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    feeds["input_ids"] = np.array([ids, [*ids[:9], *[0] * 15]])
    feeds["position_ids"] = np.tile(np.arange(24), (2, 1))
    feeds["seqlens_k"] = np.array([23, 8], np.int32)
    feeds["logits_offsets"] = np.array([8, 3, 0])
    logits = session.run(["logits"], feeds)[0]
    for row, position in enumerate([15, 20, 23, 0, 5, 8]):
        assert_same_logits(logits[row], in_torch(gpt2, ids)[position])


def test_several_shards_give_the_same_files_as_one(llama, llama_sharded, exported):
    one, several = (exported(each).folders[each.name] for each in (llama, llama_sharded))
    assert (one / WEIGHTS).read_bytes() == (several / WEIGHTS).read_bytes()
    assert (one / GRAPH).read_bytes() == (several / GRAPH).read_bytes()


def test_a_second_export_is_version_2_and_the_first_stays(gpt2, export_to, tmp_path):
    export_to(gpt2, tmp_path)
    first = files_of(tmp_path / "gpt2" / "1")
    folders = export_to(gpt2, tmp_path, max_length=64).folders
    assert [path.relative_to(tmp_path).as_posix() for path in folders.values()] == ["gpt2/2", "gpt2_step/2"]
    assert files_of(tmp_path / "gpt2" / "1") == first
    assert (tmp_path / "gpt2_step" / "2").resolve() == (tmp_path / "gpt2" / "2").resolve()


def test_older_versions_go_where_only_some_are_to_be_kept(gpt2, export_to, tmp_path):
    for _ in range(3):
        export_to(gpt2, tmp_path, keep=1)
    assert {path.name for path in (tmp_path / "gpt2").iterdir()} == {"2", "3", "config.pbtxt", "warmup"}


def test_the_same_checkpoint_gives_the_same_bytes(checkpoint, exported, export_to, tmp_path):
    first = exported(checkpoint).folders[checkpoint.name]
    second = export_to(checkpoint, tmp_path).folders[checkpoint.name]
    assert files_of(first) == files_of(second)


def test_nothing_but_the_models_is_left_in_the_repository(gpt2, export_to, tmp_path):
    (tmp_path / "README.md").write_text("ours")
    export_to(gpt2, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "gpt2", "gpt2_step"}
    assert {path.name for path in (tmp_path / "gpt2").iterdir()} == {"1", "config.pbtxt", "warmup"}


@pytest.mark.parametrize("length", [2, 256])
def test_every_other_length_is_exported(gpt2, export_to, tmp_path, length):
    assert export_to(gpt2, tmp_path, max_length=length).manifest.max_length == length


def test_without_a_length_it_is_the_checkpoints_but_at_most_2048(gpt2, llama, exported):
    assert exported(gpt2).manifest.max_length == 256
    assert exported(llama).manifest.max_length == 2048


def test_the_rotary_table_ends_at_the_length(llama, export_to, tmp_path):
    version = export_to(llama, tmp_path, max_length=100).folders["llama"]
    cos, sin = (initializer(version, f"model.rotary_emb.{which}_cache") for which in ("cos", "sin"))
    angles = np.outer(np.arange(100), 10000.0 ** (-np.arange(8) / 8))
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-5)


def test_fp16_computes_in_half_precision_and_gives_float32_logits(
    checkpoint, export_to, tmp_path, start, in_torch
):
    version = export_to(checkpoint, tmp_path, precision="fp16").folders[checkpoint.name]
    loaded = onnx.load(version / GRAPH, load_external_data=False).graph
    kinds = Counter(each.data_type for each in loaded.initializer)
    assert kinds[FLOAT16]
    assert not kinds[FLOAT32]
    run = start(version)
    assert run.manifest.kv_cache.dtype == "float16"
    ids = tokens(20)
    logits, expected = run.append(ids), in_torch(checkpoint, ids)[-1]
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).max() < 2e-2 * np.abs(expected).max()


def test_two_layers_are_traced_and_stamped_out(checkpoint, exported):
    assert exported(checkpoint).lowering.traced_layers == 2


def test_stamping_out_gives_what_tracing_every_layer_gives(
    checkpoint, exported, export_to, tmp_path, monkeypatch, start
):
    monkeypatch.setattr(graphs, "TRACED_LAYERS", 3)
    whole = export_to(checkpoint, tmp_path)
    assert whole.lowering.traced_layers == 3
    versions = [each.folders[checkpoint.name] for each in (exported(checkpoint), whole)]
    assert operators(versions[0]) == operators(versions[1])
    stamped, traced = (start(version).append(tokens(30)) for version in versions)
    np.testing.assert_array_equal(stamped, traced)


def test_layers_that_differ_are_all_traced(gpt2_by_layer, exported):
    result = exported(gpt2_by_layer)
    assert result.lowering.traced_layers == 4
    nodes = onnx.load(result.folders["gpt2_by_layer"] / GRAPH, load_external_data=False).graph.node
    scales = [
        attribute.f
        for node in nodes
        if node.op_type == "GroupQueryAttention"
        for attribute in node.attribute
        if attribute.name == "scale"
    ]
    assert scales == pytest.approx([0.25, 0.25 / 2, 0.25 / 3, 0.25 / 4])


def test_a_model_of_one_layer_is_exported(llama_of_one_layer, exported, start, in_torch):
    run = start(exported(llama_of_one_layer).folders["llama_of_one_layer"])
    assert_same_logits(run.append(tokens(32)), in_torch(llama_of_one_layer, tokens(32))[-1])


def test_the_command_says_what_it_wrote_fused_and_measured(llama, tmp_path, capsys):
    assert cli.main(["export", str(llama), "--repository", str(tmp_path), "--name", "mine"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"mine {tmp_path}/mine/1" in said
    assert f"mine_step {tmp_path}/mine_step/1" in said
    assert "2 of 3 layers" in said
    fused = "6 × packed projections, 3 × fused attention with in-place cache, 3 × attention on packed rows"
    assert f"{fused}, 6 × fused residual + norm" in said
    assert "largest difference to torch" in said
    assert "the checkpoint takes 4096, see --max-length" in said


def test_the_nodes_of_a_graph_are_counted(gpt2, exported, capsys):
    version = exported(gpt2).folders["gpt2"]
    assert cli.main(["inspect", str(version), "--graph"]) == 0
    rows = {row.split()[0]: row.split()[1:] for row in capsys.readouterr().out.splitlines()}
    assert rows["com.microsoft.GroupQueryAttention"] == ["3", "1", "0"]
    assert rows["MatMul"] == ["12", "4", "0"]
    assert rows["all"][:2] == [str(len(operators(version))), "9"]
