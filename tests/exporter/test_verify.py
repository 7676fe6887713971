"""The comparison with the checkpoint: the same whether a model is run at once or piece by piece."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from gptport import parts, reference
from gptport.checkpoint import open_checkpoint
from gptport.errors import UsageError, VerificationError


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
    assert reference.in_torch(open_checkpoint(str(checkpoint))).device.type == "meta"
    np.testing.assert_array_equal(streamed.logits, whole.logits)


def test_a_graph_that_is_run_in_parts_is_as_close(checkpoint, exported, export_to, tmp_path, monkeypatch):
    whole = exported(checkpoint).parity
    monkeypatch.setattr(parts, "_WHOLE", 0)
    monkeypatch.setattr(parts, "_PART", 30_000)
    parity = export_to(checkpoint, tmp_path).parity
    assert whole.parts == 1 < 4 < parity.parts
    assert parity.differences == pytest.approx(whole.differences, abs=1e-5)
    assert parity.perplexity == pytest.approx(whole.perplexity, rel=1e-6)


def test_perplexity_is_that_of_transformers(llama, exported, in_torch):
    parity, ids = exported(llama).parity, said_by(llama, 65).ids
    assert (parity.text_tokens, ids.shape) == (260, (4, 65))
    losses = [
        functional.cross_entropy(
            torch.from_numpy(in_torch(llama, row.tolist())[:-1]), torch.from_numpy(row[1:])
        )
        for row in ids
    ]
    assert parity.checkpoint_perplexity == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)
    assert parity.perplexity == pytest.approx(parity.checkpoint_perplexity, rel=1e-4)


def test_bf16_keeps_its_weights_and_is_compared_in_float32(checkpoint, export_to, tmp_path):
    exported = export_to(checkpoint, tmp_path, precision="bf16")
    assert exported.manifest.kv_cache.dtype == "bfloat16"
    assert exported.manifest.outputs[0].dtype == "float32"
    assert 1e-4 < exported.parity.max_abs_logit_difference / exported.parity.max_abs_logit < 0.1


def test_what_is_too_large_for_half_precision_is_named(llama, copy, export_to, tmp_path):
    folder = copy(llama)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 3e5
    weights["model.layers.1.mlp.down_proj.weight"] /= 3e5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        VerificationError, match=r"not numbers .*MatMul with model.layers.1.mlp.gate_proj\+up_proj.weight"
    ):
        export_to(folder, tmp_path / "repository", precision="fp16")


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
