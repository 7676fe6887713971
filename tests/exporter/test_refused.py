"""What cannot be exported is refused in a line that names what was not understood, not with whatever Python raised."""

from __future__ import annotations

import pytest
import torch

from architectures import row
from gptport.errors import UnsupportedModel
from gptport.spec import ModelSpec
from gptport.trace import trace
from small_models import config


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "kimi_linear",
            "has layers of the kind linear_attention, which are no attention over keys and values",
        ),
        ("diffllama", "computes chunk on its value"),
        ("jetmoe", "depends on values of its tensors"),
        (
            "xmod",
            "^xmod does not run on token ids, positions, keys and values alone, as a GPT does .*language",
        ),
    ],
)
def test_what_cannot_be_traced_is_refused_in_a_line_of_ours(name, reason):
    made = config(name)
    with pytest.raises(UnsupportedModel, match=reason):
        trace(made, ModelSpec.from_config(made, {}), 4, torch.float32)


def test_a_stack_whose_layers_have_no_number_is_refused_in_a_line_of_ours():
    decoder = config("prophetnet")
    decoder.is_encoder_decoder = False
    with pytest.raises(UnsupportedModel, match=r"^prophetnet is no single stack of .* number can be set$"):
        trace(decoder, ModelSpec.from_config(decoder, {}), 4, torch.float32)


def test_a_part_that_transformers_has_no_model_for_is_refused(tmp_path, gpt2):
    name, status, reason = row("emu3", tmp_path, gpt2).split(" | ")
    assert (name, status) == ("| emu3", "refused")
    assert reason.startswith(
        "transformers has no causal language model for the configuration of 'emu3_text_model' alone"
    )
