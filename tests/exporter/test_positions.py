"""Positions that a model counts itself become those that the graph is given; whatever is not followed is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from transformers import BartConfig
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from architectures import row
from gptport import positions, recording
from gptport.checkpoint import open_checkpoint
from gptport.errors import UnsupportedModel, UsageError
from gptport.export import chosen_length
from gptport.spec import ModelSpec
from gptport.trace import trace
from small_models import config, write_model

GIVEN = torch.tensor([[0, 1, 2], [7, 8, 9]])
TABLE = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def counted():
    return positions.Counted.of(torch.arange(3), GIVEN)


@pytest.fixture(autouse=True)
def recorder(monkeypatch):
    monkeypatch.setattr(recording, "_active", [recording.Recorder()])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda p: p.unsqueeze(0), GIVEN),
        (lambda p: p.expand(2, -1), GIVEN),
        (lambda p: (p + 2)[None, :], GIVEN + 2),
        (lambda p: p.view(1, 3, 1, 1).expand(2, 3, 1, 1), GIVEN[:, :, None, None]),
        (
            lambda p: torch.log1p(torch.floor((p.float() + 1) / 2)).view(1, 3),
            torch.log1p(((GIVEN + 1) / 2).floor()),
        ),
        (lambda p: functional.embedding(p, TABLE)[None, None], TABLE[GIVEN][:, None]),
        (lambda p: torch.zeros(2, 3, 4) + functional.embedding(p, TABLE), TABLE[GIVEN]),
        (
            lambda p: torch.zeros(2, 5, 3, 4) + functional.embedding(p, TABLE),
            TABLE[GIVEN][:, None].expand(2, 5, 3, 4),
        ),
    ],
    ids=lambda _: "",
)
def test_what_is_done_to_the_count_is_done_to_the_positions(function, expected):
    assert torch.equal(function(counted()), expected)


@pytest.mark.parametrize(
    "function",
    [lambda p: p**2, lambda p: p[1:], lambda p: p.view(3, 1), lambda p: p.flip(0)],
    ids=lambda _: "",
)
def test_what_is_not_followed_counts_from_0(function):
    got = function(counted())
    assert not isinstance(got, positions.Counted)
    assert torch.equal(got, function(torch.arange(3)))


@pytest.mark.parametrize("name", ["bart", "roberta"])
def test_a_model_that_counts_is_exported_exactly(name, tmp_path, gpt2):
    assert row(name, tmp_path, gpt2).split("|")[2].strip() == "exact"


def test_another_way_to_count_is_refused(monkeypatch):
    monkeypatch.setattr(RobertaEmbeddings, positions.METHOD, staticmethod(lambda ids, *_: 2 * ids))
    made = config("roberta")
    with pytest.raises(UnsupportedModel, match=r"^roberta\.embeddings counts positions in a way"):
        trace(made, ModelSpec.from_config(made, {}), 2, torch.float32)


def test_positions_from_the_padding_id_on_leave_fewer_for_text(tmp_path, gpt2):
    write_model("roberta", tmp_path / "roberta", gpt2)
    checkpoint = open_checkpoint(str(tmp_path / "roberta"))
    assert checkpoint.context_length == 127  # of 128; the padding id is 0
    with pytest.raises(UsageError, match="takes 2 to 127 tokens"):
        chosen_length("roberta", checkpoint.context_length, 128)


def test_only_the_decoders_layers_and_heads_count():
    counts = {"decoder_layers": 3, "encoder_layers": 7, "decoder_attention_heads": 8}
    made = BartConfig(**counts, encoder_attention_heads=2, is_encoder_decoder=False)
    spec = ModelSpec.from_config(made, {})
    assert (spec.layers, spec.heads) == (3, 8)
