"""Which graph of a directory of another exporter is packaged, and what is said where none is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from gptport.errors import (
    CheckpointError,
    UnsupportedModel,
)
from graph_edits import edited, rename

FOREIGN = Path(__file__).parent / "foreign"


def test_of_graphs_in_several_precisions_one_is_to_be_named(copied, packaged):
    folder = copied()
    (folder / "onnx").mkdir()
    for name in ("model.onnx", "model_fp16.onnx"):
        shutil.copy(folder / "model.onnx", folder / "onnx" / name)
    (folder / "model.onnx").unlink()
    with pytest.raises(
        UnsupportedModel,
        match=r"2 graphs with a cache, model\.onnx, model_fp16\.onnx; give the file of one: gptport package \S+/onnx/model\.onnx",
    ):
        packaged(folder)
    result = packaged(folder / "onnx/model_fp16.onnx")
    assert result.manifest.graph == "model_fp16.onnx"
    assert result.manifest.source["checkpoint"] == "optimum-llama"
    (folder / "onnx/model.onnx").unlink()
    assert packaged(folder).manifest.graph == "model_fp16.onnx"


def test_of_optimums_older_pair_the_merged_graph_is_taken(copied, packaged):
    folder = copied("optimum-merged")
    shutil.copy(FOREIGN / "optimum-llama/model.onnx", folder / "decoder_with_past_model.onnx")
    assert packaged(folder).manifest.graph == "decoder_model_merged.onnx"


def drop_the_cache(graph: ir.Graph) -> None:
    for value in list(graph.inputs):
        if str(value.name).startswith("past"):
            graph.inputs.remove(value)
            value.name = f"constant.{value.name}"
            value.shape = ir.Shape([1, 1, 0, 16])
            value.const_value = ir.tensor(np.zeros((1, 1, 0, 16), np.float32), name=value.name)
            graph.register_initializer(value)
    del graph.outputs[1:]


def test_what_is_no_decoder_with_a_cache_is_said(copied, packaged, tmp_path):
    folder = edited(copied(), drop_the_cache)
    with pytest.raises(
        UnsupportedModel,
        match=r"model\.onnx without a cache \(inputs: input_ids, attention_mask, position_ids\).*: optimum-cli export onnx",
    ):
        packaged(folder)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(
        json.dumps({**config, "is_encoder_decoder": True, "model_type": "t5"})
    )
    with pytest.raises(UnsupportedModel, match=r"is an encoder-decoder model \(t5\); gptport packages"):
        packaged(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        packaged(folder)
    (folder / "config.json").write_text(json.dumps(config))
    edited(folder, rename("attention_mask", "encoder_hidden_states"))
    with pytest.raises(UnsupportedModel, match=r"has model\.onnx, an encoder-decoder model"):
        packaged(folder)
    edited(folder, rename("input_ids", "pixels"))
    edited(folder, rename("encoder_hidden_states", "mask"))
    with pytest.raises(
        UnsupportedModel, match="takes pixels, mask, position_ids; expected input_ids and past"
    ):
        packaged(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"has no \*\.onnx, neither has onnx/ in it; expected one with"):
        packaged(folder)
    (folder / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="it is a checkpoint: gptport export"):
        packaged(folder)
    assert not any((tmp_path / "repository").glob("*"))
