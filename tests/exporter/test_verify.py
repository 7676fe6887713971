"""The comparison with the checkpoint: the same whether a model is run at once or piece by piece."""

from __future__ import annotations

import numpy as np
import pytest

from gptport import parts, reference
from gptport.checkpoint import open_checkpoint
from gptport.errors import UsageError


def said_by(checkpoint, length=64):
    source = open_checkpoint(str(checkpoint))
    tokenizer = source.tokenizer_files()["tokenizer.json"]
    return reference.reference(source, tokenizer, length, reference.evaluation_text(None))


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama_untied", "llama_sharded"])
def test_a_model_that_is_read_module_by_module_says_the_same(name, request, monkeypatch):
    checkpoint = request.getfixturevalue(name)
    whole = said_by(checkpoint)
    monkeypatch.setattr(reference, "_WHOLE", 0)
    streamed = said_by(checkpoint)
    assert (whole.streamed, streamed.streamed) == (False, True)
    np.testing.assert_array_equal(streamed.text_logits, whole.text_logits)
    for a, b in zip(streamed.row_logits, whole.row_logits, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_graph_that_is_run_in_parts_is_as_close(checkpoint, exported, export_to, tmp_path, monkeypatch):
    whole = exported(checkpoint).parity
    monkeypatch.setattr(parts, "_WHOLE", 0)
    monkeypatch.setattr(parts, "_PART", 30_000)
    parity = export_to(checkpoint, tmp_path).parity
    assert whole.parts == 1 < 4 < parity.parts
    assert parity.differences == pytest.approx(whole.differences, abs=1e-5)
    assert parity.perplexity == pytest.approx(whole.perplexity, rel=1e-6)


def test_perplexity_is_that_of_transformers(llama, exported, in_torch):
    import torch

    parity = exported(llama).parity
    ids = said_by(llama, parity.text_tokens).text
    logits = torch.from_numpy(in_torch(llama, ids.tolist()))
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.from_numpy(ids[1:]))
    assert parity.checkpoint_perplexity == pytest.approx(float(loss.exp()), rel=1e-5)
    assert parity.perplexity == pytest.approx(parity.checkpoint_perplexity, rel=1e-4)


def test_the_text_may_be_anothers(tmp_path):
    (tmp_path / "text").write_text("In the beginning.")
    assert reference.evaluation_text(tmp_path / "text") == "In the beginning."


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe", None])
def test_a_text_that_is_none_is_refused(content, tmp_path):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=str(path)):
        reference.evaluation_text(path)
