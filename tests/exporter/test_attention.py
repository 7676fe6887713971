"""Attention is caught where a model calls it or writes it out; what is done in it and not understood is refused by name."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gptport import masks, recording, swap
from gptport.errors import UnsupportedModel


@contextmanager
def a_call():
    """What attention finds while a model is traced."""
    model, recorder = nn.Identity(), recording.Recorder()
    call = swap.Call(
        torch.empty(1, dtype=torch.int32, device="meta"), torch.empty(1, 1, device="meta"), 16, torch.float32
    )
    with swap.calling(call), recorder.recording_of(model):
        yield call, recorder.recording


def attend(mask=None, **arguments):
    states = torch.empty(1, 2, 3, 8, device="meta")
    swap._attention(SimpleNamespace(layer_idx=0), states, states, states, mask, None, **arguments)


@pytest.mark.parametrize("argument", ["position_bias", "head_mask"])
def test_attention_that_asks_for_more_is_refused_by_name(argument):
    with a_call(), pytest.raises(UnsupportedModel, match=f"takes {argument}=128"):
        attend(**{argument: 128})


def test_attention_with_a_mask_of_its_own_is_refused():
    with a_call(), pytest.raises(UnsupportedModel, match="an attention mask of its own"):
        attend(torch.empty(1, 2, 3, 8, device="meta"))


def test_attention_with_another_window_than_its_mask_is_refused():
    with a_call(), pytest.raises(UnsupportedModel, match="a window of 128 where its mask has none"):
        attend(sliding_window=128)


def test_a_soft_cap_and_the_window_of_a_mask_are_the_operators():
    def window(_, __, query, key):
        return (key <= query) & (key > query - 4)

    with a_call() as (_, recorded):
        attend(masks.mask(batch_size=1, q_length=3, mask_function=window, local_size=4), softcap=30.0)
    attention = next(call for call in recorded.calls if call.operator == "gptport::Attention")
    assert (attention.keywords["window"], attention.keywords["softcap"]) == (4, 30.0)


def product(change):
    """Attention written out, as a model does, changed in one place; what it recorded."""
    with a_call() as (call, recorded):
        query = torch.empty(1, 2, 3, 8, device="meta")
        key, value = swap.PassThroughCache().update(query, query, 0)
        mask = masks.mask(batch_size=1, q_length=3, mask_function=lambda _, __, q, k: k <= q)
        scores = torch.matmul(query, key.transpose(-1, -2)) / 4.0
        out = torch.matmul(torch.softmax(change(scores) + mask, -1), value)
        assert out.shape == query.shape
        assert call.present.keys() == {0}
    return next(each for each in recorded.calls if each.operator == "gptport::Attention")


def test_attention_that_is_written_out_is_the_operator():
    assert product(lambda scores: scores).keywords == {"scale": 0.25, "window": 0, "softcap": 0.0}
    assert product(lambda scores: scores * 0.5).keywords["scale"] == 0.125


@pytest.mark.parametrize("change", [torch.tanh, lambda scores: scores + 1, lambda scores: scores**2])
def test_what_is_done_to_its_scores_and_not_understood_is_refused_by_name(change):
    with pytest.raises(UnsupportedModel, match=r"the attention of the model computes \w+ on its scores"):
        product(change)


def test_a_mask_that_is_neither_causal_nor_a_window_is_refused_where_attention_takes_it():
    def chunked(_, __, query, key):
        return (key <= query) & (key // 4 == query // 4)

    def backwards(_, __, query, key):
        return key >= query

    for function, size in ((chunked, 5), (chunked, None), (backwards, None)):
        with a_call(), pytest.raises(UnsupportedModel, match="neither causal nor a sliding window"):
            attend(masks.mask(batch_size=1, q_length=3, mask_function=function, local_size=size))


def test_a_layer_that_attends_twice_is_refused():
    with a_call():
        attend()
        with pytest.raises(UnsupportedModel, match="layer 0 attends twice with one cache"):
            attend()
