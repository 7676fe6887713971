"""Two dry runs tell what depends on the input; whatever a graph could not say stops the export with its name."""

from __future__ import annotations

import pytest
import torch
from onnx_ir import DataType, Graph, TensorType, Value
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP

from gptport import recording
from gptport.aten import Translator, symbolic_shape, translate
from gptport.errors import UnsupportedModel
from gptport.recording import Ref, Size

SIZES = {(3, 7): "batch", (5, 11): "sequence"}


class Computes(nn.Module):
    """A module that computes a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def run(function, *shape):
    model = nn.Sequential(Computes(function))
    recorder, x = recording.Recorder(), torch.empty(shape, device="meta")
    with torch.no_grad(), recorder.recording_of(model) as recorded:
        model(x)
    return recorded


def merged(function):
    return recording.merged(run(function, 3, 5, 8), run(function, 7, 11, 8), SIZES)


def translated(function):
    """The operators and the shape of the result."""
    recorded = merged(function)
    graph = Graph([], [], nodes=[])
    x = Value(name="x", shape=symbolic_shape(recorded.shapes[0]), type=TensorType(DataType.FLOAT))
    translator = Translator(graph, recorded, {0: x})
    for call in recorded.calls:
        translate(translator, call)
    return [node.op_type for node in graph], translator.values[len(recorded.shapes) - 1]


def test_a_number_that_differs_between_the_runs_is_a_size():
    recorded = merged(lambda x: x.transpose(0, 1))
    assert recorded.shapes == [(Size("batch"), Size("sequence"), 8), (Size("sequence"), Size("batch"), 8)]
    (call,) = recorded.calls
    assert (call.operator, call.arguments, call.scope) == ("aten::transpose.int", (Ref(0), 0, 1), "0")


def test_sizes_in_arguments_are_named_too():
    (call,) = merged(lambda x: x.view(x.shape[0], x.shape[1], 2, 4)).calls
    assert call.arguments == (Ref(0), (Size("batch"), Size("sequence"), 2, 4))


def test_a_size_without_a_name_says_both_numbers():
    (call,) = merged(lambda x: x.view(x.shape[0] * x.shape[1], 8)).calls
    assert call.arguments[1] == (Size("15|77"), 8)


@pytest.mark.parametrize(
    ("function", "operators", "shape"),
    [
        (lambda x: x + 1.5, ["Add"], ["batch", "sequence", 8]),
        (lambda x: x * x - x / 2, ["Mul", "Div", "Sub"], ["batch", "sequence", 8]),
        (lambda x: x.tanh(), ["Tanh"], ["batch", "sequence", 8]),
        (lambda x: x.to(torch.float16), ["Cast"], ["batch", "sequence", 8]),
        (
            lambda x: x.view(x.shape[0], -1, 2, 4).transpose(1, 2),
            ["Reshape", "Transpose"],
            ["batch", 2, "sequence", 4],
        ),
        (lambda x: x.split(4, -1)[1], ["Split"], ["batch", "sequence", 4]),
        (lambda x: x[..., 2:6], ["Slice"], ["batch", "sequence", 4]),
        (lambda x: x[:, :, :].clone().detach().contiguous(), [], ["batch", "sequence", 8]),
    ],
    ids=["scalar", "arithmetic", "tanh", "cast", "heads", "split", "slice", "nothing at all"],
)
def test_an_operator_becomes_that_of_onnx(function, operators, shape):
    found, result = translated(function)
    assert found == operators
    assert result.shape == shape


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.cumsum(-1), "aten::cumsum"),
        (lambda x: torch.erfinv(x), "aten::erfinv"),
        (lambda x: x.sort(-1).values, "aten::sort"),
    ],
)
def test_an_operator_without_a_translation_is_refused_by_name(function, name):
    with pytest.raises(UnsupportedModel, match=f"^0 computes {name}, which gptport has no ONNX operator for"):
        translated(function)


def test_a_change_in_place_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match=r"0 changes a tensor in place \(aten::clamp_\)"):
        run(lambda x: x.clamp_(0), 3, 5, 8)


def test_a_number_made_of_a_size_is_refused():
    with pytest.raises(UnsupportedModel, match=r"computes with 0\.2 at one length and with 0\.09"):
        merged(lambda x: x * (1 / x.shape[1]))


def test_a_slice_that_depends_on_the_length_is_refused():
    with pytest.raises(UnsupportedModel, match="takes a slice that depends on the length"):
        translated(lambda x: x.view(-1, 8)[x.shape[1] :])


def test_other_computations_at_other_sizes_are_refused():
    with pytest.raises(UnsupportedModel, match="different things for different batch sizes or lengths"):
        merged(lambda x: x + 1 if x.shape[1] > 8 else x * 2)


def test_an_addition_with_a_factor_is_refused():
    with pytest.raises(UnsupportedModel, match="with alpha = 3"):
        translated(lambda x: torch.add(x, x, alpha=3))


def test_constants_that_depend_on_the_length_are_refused():
    with pytest.raises(UnsupportedModel, match="constants that depend on the batch size or the length"):
        merged(lambda x: x * torch.tensor(float(x.shape[1])))


class TestInAWholeModel:
    """A Llama whose MLP does what it should not."""

    @pytest.fixture
    def export(self, save, export_to, tmp_path, monkeypatch):
        forward = LlamaMLP.forward
        config = LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=384
        )
        checkpoint = save(LlamaForCausalLM(config), "llama_patched")

        def run(change):
            monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: change(forward(self, x)))
            try:
                return export_to(checkpoint, tmp_path)
            finally:
                assert not any(path.name != "llama_patched" for path in tmp_path.iterdir())

        return run

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x: x.cumsum(-1), r"model\.layers\.0\.mlp computes aten::cumsum"),
            (lambda x: x.clamp_(0), r"model\.layers\.0\.mlp changes a tensor in place \(aten::clamp_\)"),
            (lambda x: x * (1 / x.shape[1]), "at one length and with"),
        ],
        ids=["an unknown operator", "in place", "a number made of the length"],
    )
    def test_it_is_refused_with_the_modules_name(self, export, change, message):
        with pytest.raises(UnsupportedModel, match=message):
            export(change)
