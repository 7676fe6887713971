"""Of a checkpoint that takes images too, the decoder of text is exported, and compared with all of it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from gptport import reference
from gptport.checkpoint import open_checkpoint
from gptport.errors import CheckpointError, UnsupportedModel, VerificationError
from gptport.graph import build
from gptport.precision import by_name
from small_models import config

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="session")
def multimodal(save, checkpoints):
    """A small random model of a type that takes images and text, as transformers writes it."""

    def write(name):
        if not (checkpoints / name).exists():
            torch.manual_seed(0)
            model = AutoModelForImageTextToText.from_config(config(name), dtype=torch.float32)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.15)
            save(model, name)
        return checkpoints / name

    return write


def renamed(folder, prefixes):
    path = folder / "model.safetensors"
    stored = load_file(path)
    for old, new in prefixes.items():
        stored = {
            new + name.removeprefix(old) if name.startswith(old) else name: each
            for name, each in stored.items()
        }
    save_file(stored, path)
    return folder


@pytest.mark.parametrize("name", ["gemma3", "llava", "mistral3"])
def test_its_text_is_exported_and_what_else_it_has_is_said(multimodal, exported, name):
    result = exported(multimodal(name))
    assert (
        result.manifest.source["model_type"]
        == open_checkpoint(str(multimodal(name))).config.model_type
        != name
    )
    assert result.parity.greedy_agreement == 1
    assert "of other parts (multi_modal_projector" in result.unread
    assert f"not read: {result.unread}" in result.report.read_text()


@pytest.mark.parametrize("name", ["gemma3", "llava"])
def test_the_other_names_that_checkpoints_have_are_found(multimodal, copy, name):
    folder = copy(multimodal(name))
    saved = open_checkpoint(str(folder))
    weight = saved.tensor(Q_PROJ)
    assert saved.sources(Q_PROJ) == (f"language_model.{Q_PROJ}",)
    other = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    checkpoint = open_checkpoint(str(renamed(folder, other)))
    assert checkpoint.sources(Q_PROJ) == (f"model.language_model.{Q_PROJ.removeprefix('model.')}",)
    assert torch.equal(checkpoint.tensor(Q_PROJ), weight)
    build(checkpoint, by_name("fp32"), 64)


def test_a_large_one_is_read_module_by_module(multimodal, monkeypatch):
    checkpoint = open_checkpoint(str(multimodal("gemma3")))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        whole = reference.in_torch(checkpoint, whole=True)(ids, use_cache=False).logits
        monkeypatch.setattr(reference, "_WHOLE", 0)
        streamed = reference.in_torch(checkpoint, whole=True)
        assert streamed.device.type == "meta"
        assert torch.allclose(streamed(ids, use_cache=False).logits, whole, atol=1e-4)
        assert torch.allclose(reference.in_torch(checkpoint)(ids, use_cache=False).logits, whole, atol=1e-4)


def test_a_tensor_of_its_text_that_nothing_reads_stops_the_export(multimodal, copy):
    folder = copy(multimodal("gemma3"))
    path = folder / "model.safetensors"
    name = "model.language_model.layers.0.self_attn.sinks"
    save_file({**load_file(path), name: torch.ones(4)}, path)
    with pytest.raises(
        CheckpointError, match=f"has {name}, which Gemma3ForConditionalGeneration does not read"
    ):
        build(open_checkpoint(str(folder)), by_name("fp32"), 64)


def test_a_model_whose_text_sees_what_comes_after_is_not_exported(multimodal, exported):
    with pytest.raises(VerificationError, match="differs from the original"):
        exported(multimodal("paligemma"))


def test_a_model_that_wants_more_than_text_is_refused_by_name(multimodal, exported):
    with pytest.raises(UnsupportedModel, match="Blip2ForConditionalGeneration does not run on text alone"):
        exported(multimodal("blip-2"))
