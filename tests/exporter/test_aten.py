"""Each translated operator computes in onnxruntime what it computes in torch."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch.nn import functional

from gptport import recording
from gptport.aten import DTYPES, Translator, symbolic_shape, translate
from gptport.dialects import onnxruntime as dialect
from gptport.errors import UnsupportedModel

SIZES = {(3, 7): "batch", (5, 11): "sequence"}


class Of(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def in_onnxruntime(function, x):
    """The result of a function of [batch, sequence, 8], traced, translated and run."""

    def run(batch, sequence):
        recorder, model = recording.Recorder(), Of(function)
        given = torch.empty(batch, sequence, 8, device="meta")
        with recorder.recording_of(model) as recorded:
            result = model(given)
        return recorded, recorded.numbers[id(given)], recorded.numbers[id(result)]

    (first, source, result), (second, *_) = run(3, 5), run(7, 11)
    merged = recording.merged(first, second, SIZES)
    given = ir.Value(
        name="x", shape=symbolic_shape(merged.shapes[source]), type=ir.TensorType(DTYPES[torch.float32])
    )
    graph = ir.Graph([given], [], nodes=[], opset_imports=dialect.OPSETS, name="traced")
    translator = Translator(graph, merged, {source: given})
    for call in recording.used(merged, [result]):
        translate(translator, call)
    graph.outputs.append(translator.values[result])
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    (found,) = onnxruntime.InferenceSession(model).run(None, {"x": x.numpy()})
    return torch.from_numpy(found)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.where(x > 0.5, x, -x),
        lambda x: torch.where(x >= x.mean(-1, keepdim=True), x * 2, x),
        lambda x: torch.where(x.mean(-1, keepdim=True) < x, x * 2, x),
        lambda x: torch.where((x * 4).floor() == 1, x, x + 3),
        lambda x: torch.where(x <= 0.25, x.exp(), torch.expm1(x)),
        lambda x: torch.min(x, x.mean(-1, keepdim=True)) + torch.max(x, x * x),
        lambda x: x.abs().clamp(min=x.mean(-1, keepdim=True)),
        lambda x: x.clamp(max=x.mean(-1, keepdim=True)),
        lambda x: x - x.max(dim=-1, keepdim=True)[0],
        lambda x: x.max(dim=-1)[0],
        lambda x: x.gather(-1, x.max(dim=-1, keepdim=True)[1]),
        lambda x: functional.pad(x, (0, 3)).transpose(0, 1),
        lambda x: x[..., None, :].expand(-1, -1, 3, -1) * 2,
        lambda x: x.mean(0, keepdim=True).expand(*x.shape) * 2,
        lambda x: x[(x[:, 0, 0] > 0).long()],
        lambda x: x / torch.norm(x, p=1.0, dim=-1, keepdim=True) + torch.norm(x, dim=-1, keepdim=True),
        lambda x: torch.log1p(x.abs()) + torch.ones_like(x),
        lambda x: torch.stack([-x, x * 2], dim=-1).flatten(-2),
        lambda x: x + torch.zeros(x.shape[:2], device=x.device)[..., None],
        functional.gelu,
        lambda x: functional.gelu(x, approximate="tanh"),
    ],
    ids=lambda _: "",
)
def test_it_computes_what_torch_computes(function):
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(in_onnxruntime(function, x), function(x), atol=1e-5)


def test_other_padding_is_refused():
    with pytest.raises(UnsupportedModel, match="pads more than the end of the last axis"):
        in_onnxruntime(lambda x: functional.pad(x, (1, 0)), torch.zeros(1, 1, 8))
