"""Trace a model without its weights: a few layers, fake tensors, operators of domain `gptport`.

The result is one graph for prefill and decode whose initializers have names and shapes but no values yet; the names are
those of the checkpoint's modules (`model.layers.0.mlp.up_proj.weight`).
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import AutoModelForCausalLM

from . import operators, passes, swap
from .errors import UnsupportedModel
from .passes.cancel_views import cancel_views
from .passes.constant_shapes import constant_shapes
from .passes.split_sequences import split_sequences

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from .spec import ModelSpec

OPSET = 21
"""Of the standard operators; every onnxruntime since 1.20 has it."""

_PREFIX = "model."

_NORMALIZE = (split_sequences, constant_shapes, cancel_views)
"""What torch traces by way of run-time shapes and sequences is said plainly, so that like layers look alike."""


@dataclass(frozen=True)
class Trace:
    """A traced model.

    Attributes:
        model: the graph. Inputs `input_ids`, `position_ids`, `seqlens_k`, outputs `logits`, and two of each for every layer.
        layers_path: path of the list of decoder layers, such as `model.layers`; a node's layer is read from its scope.
        layers: how many layers were traced.
        tied: parameter name → the name of the parameter whose values it shares.
    """

    model: ir.Model
    layers_path: str
    layers: int
    tied: dict[str, str]


class _Forward(nn.Module):
    """The model as a function of the tensors of the graph."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        seqlens_k: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        def last(_: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
            return operators.last_position(inputs[0], position_ids, seqlens_k)

        hook = self.model.get_output_embeddings().register_forward_pre_hook(last)
        try:
            with swap.calling(swap.Call(seqlens_k, past)) as call:
                output = self.model(
                    input_ids=input_ids,
                    position_ids=position_ids,
                    past_key_values=swap.PassThroughCache(),
                    use_cache=True,
                )
        finally:
            hook.remove()
        missing = [layer for layer in range(len(past)) if layer not in call.present]
        if missing:
            raise UnsupportedModel(
                f"layers {missing} have no attention that goes through transformers' attention interface"
            )
        return (
            output.logits.float(),
            *(tensor for layer in range(len(past)) for tensor in call.present[layer]),
        )


def trace(config: PretrainedConfig, spec: ModelSpec, layers: int, dtype: torch.dtype) -> Trace:
    """Trace `layers` decoder layers of the architecture in `dtype`.

    Raises:
        UnsupportedModel: the architecture does something that the operators cannot say; the message names it.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=swap.ATTENTION, dtype=dtype
        ).eval()
        arguments = _example(spec, layers, dtype)
    with torch.no_grad(), swap.swapped(model, _meta_model(config)), _quiet():
        exported = torch.export.export(
            _Forward(model), arguments, dynamic_shapes=_dynamic_shapes(layers), strict=False
        )
        program = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False, opset_version=OPSET)
    assert program is not None
    result = Trace(program.model, _layers_path(model, layers), layers, dict(model.all_tied_weights_keys))
    _name_tensors(result)
    passes.run(result.model, _NORMALIZE, passes.Context(spec, 0, _no_rotary))
    return result


def _no_rotary(module: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    raise AssertionError(f"no rotary table is needed to normalize a trace, not even of {module}")


def _meta_model(config: PretrainedConfig) -> PreTrainedModel:
    """The same modules without any memory, for `swap` to make single ones real and ask what they compute."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.eval()
    return model


def _example(spec: ModelSpec, layers: int, dtype: torch.dtype) -> tuple[Any, ...]:
    batch, sequence, length = (
        3,
        5,
        16,
    )  # distinct, and none is 0 or 1, which torch.export would take for constants
    ids = torch.zeros(batch, sequence, dtype=torch.int64)
    cache = (batch, spec.kv_heads, length, spec.head_dim)
    past = [(torch.zeros(cache, dtype=dtype), torch.zeros(cache, dtype=dtype)) for _ in range(layers)]
    return ids, torch.zeros_like(ids), torch.zeros(batch, dtype=torch.int32), past


def _dynamic_shapes(layers: int) -> tuple[Any, ...]:
    batch, sequence, length = (torch.export.Dim(name) for name in ("batch", "sequence", "max_length"))
    cache = {0: batch, 2: length}
    return {0: batch, 1: sequence}, {0: batch, 1: sequence}, {0: batch}, [(cache, cache)] * layers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter of torch prints and warns of what it does; only its errors matter here."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _layers_path(model: nn.Module, layers: int) -> str:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return str(path)
    raise UnsupportedModel(f"{type(model).__name__} has no list of {layers} decoder layers")


def _name_tensors(result: Trace) -> None:
    """Give inputs and outputs their public names, and initializers the names of the model's parameters."""
    graph = result.model.graph
    kinds = [f"{layer}.{kind}" for layer in range(result.layers) for kind in ("key", "value")]
    for value, name in zip(
        graph.inputs,
        ["input_ids", "position_ids", "seqlens_k", *(f"past_key_values.{k}" for k in kinds)],
        strict=True,
    ):
        value.name = name
    for value, name in zip(graph.outputs, ["logits", *(f"present.{k}" for k in kinds)], strict=True):
        value.name = name
    for name in [name for name in graph.initializers if name.startswith(_PREFIX)]:
        value = graph.initializers[name]
        value.name = name.removeprefix(_PREFIX)


def layer_of(node: ir.Node, layers_path: str) -> int | None:
    """The decoder layer that a node belongs to, from the module path it was traced under; None outside of the layers."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    prefix = f"{_PREFIX}{layers_path}."
    for scope in ast.literal_eval(scopes) if scopes else ():
        if scope.startswith(prefix):
            return int(scope[len(prefix) :].split(".")[0])
    return None


def rotary_tables(
    config: PretrainedConfig, module: str, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [length, head_dim / 2], as the model's own rotary module makes them."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1
    with torch.no_grad():
        rotary = swap.real_rotary(_meta_model(config).get_submodule(module))
        cos, sin = rotary(torch.zeros(1), torch.arange(length)[None])
    half = cos.shape[-1] // 2
    if not (torch.equal(cos[..., :half], cos[..., half:]) and torch.equal(sin[..., :half], sin[..., half:])):
        raise UnsupportedModel(f"{module} gives the two halves of a head different angles")
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()
