"""Layers whose keys and values have unlike shapes: the graph has each layer's own, and what is written says so."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from gptport import genai, manifest, report, triton_config
from gptport.errors import UsageError
from small_models import LAYERS, write_model

SHAPES = [(2, 32), (4, 32), (4, 32), (4, 32)]
"""Heads of a layer, and their width: of the first, which has no window, half as many."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, gpt2):
    folder = tmp_path_factory.mktemp("unlike") / "mimo"
    write_model("mimo_v2_flash", folder, gpt2)
    return folder


@pytest.fixture(scope="module")
def result(checkpoint, exported):
    return exported(checkpoint)


def test_the_logits_are_torchs(result, checkpoint, start, in_torch):
    ids = [int(n) for n in range(3, 40)]
    expected = in_torch(checkpoint, ids)
    run = start(result.folders["mimo"])
    for chunk in (ids[:20], ids[20:36], ids[36:]):
        got = run.append(chunk)
    assert abs(got - expected[-1]).max() < 1e-4 * abs(expected).max()


def test_the_manifest_has_the_shape_of_each_tensor(result):
    read = manifest.read(result.folders["mimo"])
    assert read == result.manifest
    assert read.cache_shapes == tuple(each for each in SHAPES for _ in ("key", "value"))
    assert (read.kv_cache.layers, read.kv_cache.kv_heads, read.kv_cache.head_dim) == (LAYERS, None, None)
    assert read.cache_bytes_per_token == 2 * (2 + 3 * 4) * 32 * 4
    assert "1 layer × 2 heads × 32 + 3 layers × 4 heads × 32" in report.inspected(
        result.folders["mimo"], read
    )
    assert "2, 32 wide in 1 layer; 4, 32 wide in 3 layers" in result.report.read_text()


def test_each_state_of_the_step_model_has_its_own_dimensions(result):
    text = (result.folders["mimo_step"].parent / "config.pbtxt").read_text()
    config = text_format.Parse(text, pb.ModelConfig())
    length = result.manifest.max_length
    wanted = [[heads, length, width] for heads, width in SHAPES for _ in ("key", "value")]
    states = config.sequence_batching.state
    assert [list(state.dims) for state in states] == wanted
    assert [list(state.initial_state[0].dims) for state in states] == wanted


def test_there_is_nothing_for_onnxruntime_genai_and_it_says_why(result):
    assert not {genai.CONFIG, genai.GRAPH} & result.manifest.files.keys()
    said = genai.obstacle(result.manifest)
    assert "past_key_values.1.key is [batch, 4, max_length, 32]" in said
    assert "[batch, 2, max_length, 32] in past_key_values.0.key" in said


def test_a_cache_that_clients_hold_is_refused_with_what_differs(checkpoint, export_to, tmp_path):
    serving = triton_config.Serving(step_cache="client")
    with pytest.raises(UsageError, match=r"have 2 heads × 32 and 4 heads × 32: use --step-cache server"):
        export_to(checkpoint, tmp_path, serving=serving)
    assert not list(tmp_path.glob("mimo*"))


def test_layers_that_share_keys_and_values_have_a_cache_each(tmp_path, gpt2, export_to, start, in_torch):
    """Heads of 32 where there is a window, of 512 where there is none; the last two layers take those of the first two."""
    write_model("gemma4_text", tmp_path / "gemma", gpt2)
    folder = export_to(tmp_path / "gemma", tmp_path / "repository").folders["gemma"]
    assert manifest.read(folder).cache_shapes == ((2, 32), (2, 32), (2, 512), (2, 512)) * 2
    ids = [int(n) for n in range(3, 40)]
    expected = in_torch(tmp_path / "gemma", ids)
    run = start(folder)
    for chunk in (ids[:20], ids[20:36], ids[36:]):
        got = run.append(chunk)
    assert abs(got - expected[-1]).max() < 1e-4 * abs(expected).max()
