"""Experts whose matrices lie below each other in one parameter (DBRX): known by what they compute, their weights set apart."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from torch import nn
from transformers.models.dbrx.modeling_dbrx import DbrxExperts

import architectures
import small_models
from gptport import stacked_experts, weights
from gptport.checkpoint import open_checkpoint
from gptport.export import export
from gptport.precision import by_name
from small_models import config


def test_it_is_exported_exactly(tmp_path, gpt2):
    row = architectures.row("dbrx", tmp_path, gpt2)
    assert row.split("|")[2].strip() == "exact"
    assert "4 fuse_experts" in row


def test_it_is_exported_in_integers(tmp_path, gpt2, monkeypatch):
    """All experts are chosen: random ones are so close to each other that rounding would choose others."""
    all_chosen = {"ffn_hidden_size": 64, "moe_num_experts": 8, "moe_top_k": 8}
    monkeypatch.setitem(small_models._OF_ITS_OWN["dbrx"], "ffn_config", all_chosen)
    small_models.write_model("dbrx", tmp_path / "dbrx", gpt2)
    source, quiet = open_checkpoint(str(tmp_path / "dbrx")), architectures._Silent()
    result = export(source, tmp_path / "out", "dbrx", by_name("int8"), 64, quiet)
    assert result.lowering.changes["quantize_experts"] == 4


@pytest.mark.parametrize(("activation", "known"), [(nn.SiLU(), True), (nn.GELU(), False)])
def test_they_are_known_by_what_they_compute(activation, known):
    with torch.device("meta"):
        experts = DbrxExperts(config("dbrx").ffn_config)
    experts.mlp.activation_fn = activation
    assert (stacked_experts.replacement(experts) is not None) == known


def test_their_rows_are_set_apart():
    graph = ir.Graph([], [], nodes=[], name="empty")
    stored = {name: torch.randn(6, 4) for name in ("gate", "up")}
    values = [weights.parameter(graph, name, ir.DataType.FLOAT, (6, 4)) for name in stored]
    both = weights.apart(values, 3)
    recipe = weights.of(both)
    assert weights.shape(both) == recipe.shape([(6, 4), (6, 4)]) == (3, 4, 4)
    expected = torch.cat([each.view(3, 2, 4) for each in stored.values()], 1)
    assert torch.equal(recipe.read(stored.__getitem__, torch.float32), expected)
