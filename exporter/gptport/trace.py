"""Trace a model without its weights: a few layers, run dry on the meta device, its modules swapped for `gptport` operators.

The result is one graph for prefill and decode whose initializers have names and shapes but no values yet; the names are
those of the model's parameters (`model.layers.0.mlp.up_proj.weight`).
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from . import operators, own_attention, positions, recording, rotary, swap, weights
from .aten import DTYPES, Translator, symbolic_shape, translate
from .errors import GptportError, UnsupportedModel, first_line
from .spec import with_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel

    from .spec import ModelSpec

IR_VERSION = 10
"""onnxruntime has read it since 1.20."""

_UNDERSTOOD_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Of the kinds of layers that configurations list, in `layer_types`."""

# Two sets of sizes; all distinct, so that a number tells which size it is.
_BATCHES, _SEQUENCES, _LENGTHS = (3, 7), (5, 11), (17, 37)
_SIZES = {_BATCHES: "batch", _SEQUENCES: "sequence", _LENGTHS: "max_length"}


@dataclass(frozen=True)
class Trace:
    """A traced model.

    Attributes:
        model: the graph. Inputs `input_ids`, `position_ids`, `seqlens_k`, outputs `logits`, and two of each for every layer.
        layers_path: path of the list of decoder layers, such as `model.layers`; a node's layer is read from its scope.
        layers: how many layers were traced.
        aliases: parameter → the other names that the model has for it.
    """

    model: ir.Model
    layers_path: str
    layers: int
    aliases: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Tensors:
    """Inputs and outputs of one run, by the names that they have in the graph."""

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


def trace(config: PretrainedConfig, spec: ModelSpec, layers: int, dtype: torch.dtype) -> Trace:
    """Trace `layers` decoder layers of the architecture in `dtype`.

    Raises:
        UnsupportedModel: the architecture does something that the operators cannot say; the message names it.
    """
    with _named(config, spec):
        model = meta_model(config, layers, dtype)
        with swap.swapped(model, meta_model(config, layers, torch.float32)):
            first, tensors = _record(model, layers, 0)
            second, _ = _record(model, layers, 1)
        merged = recording.merged(first, second, _SIZES)
        return Trace(_translate(merged, model, tensors), _layers_path(model, layers), layers, _aliases(model))


@contextmanager
def _named(config: PretrainedConfig, spec: ModelSpec) -> Iterator[None]:
    """Say of any other error where it comes from: an architecture given what it does not expect may fail anyhow."""
    try:
        yield
    except GptportError:
        raise
    except Exception as error:
        others = sorted(set(getattr(config, "layer_types", None) or ()) - _UNDERSTOOD_LAYERS)
        if others:
            raise UnsupportedModel(
                f"{spec.model_type} has layers of the kind {', '.join(others)}, which are no attention over keys and values; "
                "gptport cannot export them yet"
            ) from error
        if "meta tensor" in str(error):
            raise UnsupportedModel(
                f"what {spec.model_type} computes depends on values of its tensors, which a graph cannot follow "
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        raise UnsupportedModel(
            f"{spec.model_type} does not run on token ids, positions, keys and values alone, as a GPT does "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error


def meta_model(config: PretrainedConfig, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    """The model's modules, with `layers` layers and without any memory."""
    config = with_layers(config, layers)
    with own_attention.classes_known(config, swap.ATTENTION), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=swap.ATTENTION,
            dtype=dtype,
            # Where the configuration is the checkpoint's own code, the user has trusted that code already.
            trust_remote_code=type(config).__module__.startswith("transformers_modules"),
        )
    # Models look for padding among the ids, and there are no ids. Some configurations allow no None.
    vars(model.config)["pad_token_id"] = None
    model.eval()
    return model


def _record(model: PreTrainedModel, layers: int, run: int) -> tuple[recording.Recording, _Tensors]:
    inputs = _inputs(run)
    ids, position_ids, seqlens_k = inputs.values()
    call = swap.Call(seqlens_k, position_ids, _LENGTHS[run], model.dtype)
    recorder = recording.Recorder()
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda _, inputs: operators.last_position(inputs[0], position_ids, seqlens_k)
    )
    with ExitStack() as stack:
        stack.callback(hook.remove)
        # Models ask whether they are traced before they look at values, which these tensors do not have.
        for question in ("is_compiling", "is_exporting"):
            stack.enter_context(patch.object(torch.compiler, question, lambda: True))
        stack.enter_context(torch.no_grad())
        stack.enter_context(swap.calling(call))
        stack.enter_context(own_attention.ListsAsSlices())
        stack.enter_context(positions.Counting(position_ids))
        recorded = stack.enter_context(recorder.recording_of(model))
        looked_up = rotary.looked_up_in(model)
        if looked_up:
            path, pairs = looked_up
            call.table = operators.rotary_table(next(model.parameters()), position_ids, path, 2 * pairs)
        output = model(
            input_ids=ids, position_ids=position_ids, past_key_values=swap.PassThroughCache(), use_cache=True
        )
        logits = output.logits.to(torch.float32)
    without = [layer for layer in range(layers) if layer not in call.present]
    if without:
        raise UnsupportedModel(
            f"layers {without} have no attention that goes through transformers' attention interface"
        )
    inputs |= _of_layers("past_key_values", call.past)
    return recorded, _Tensors(inputs, {"logits": logits, **_of_layers("present", call.present)})


def _of_layers(name: str, cache: Mapping[int, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Keys and values of each layer in turn, by the names that the graph has for them."""
    return {
        f"{name}.{layer}.{kind}": tensor
        for layer in sorted(cache)
        for kind, tensor in zip(("key", "value"), cache[layer], strict=True)
    }


def _inputs(run: int) -> dict[str, torch.Tensor]:
    """All but the cache, whose shape shows only when a layer asks for it."""
    batch, sequence = _BATCHES[run], _SEQUENCES[run]

    def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    return {
        "input_ids": empty((batch, sequence), torch.int64),
        "position_ids": empty((batch, sequence), torch.int64),
        "seqlens_k": empty((batch,), torch.int32),
    }


def _translate(recorded: recording.Recording, model: PreTrainedModel, tensors: _Tensors) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], opset_imports={operators.DOMAIN: 1}, name="traced")
    values = {}
    for name, tensor in tensors.inputs.items():
        number = recorded.numbers[id(tensor)]
        values[number] = ir.Value(
            name=name, shape=symbolic_shape(recorded.shapes[number]), type=ir.TensorType(DTYPES[tensor.dtype])
        )
        graph.inputs.append(values[number])
    stored = {**dict(model.named_parameters()), **_stored_buffers(model)}
    for name, tensor in stored.items():
        if id(tensor) in recorded.numbers:
            values[recorded.numbers[id(tensor)]] = weights.parameter(
                graph, name, DTYPES[tensor.dtype], tuple(tensor.shape)
            )
    needed = recording.used(recorded, [recorded.numbers[id(tensor)] for tensor in tensors.outputs.values()])
    recorded.constants.update(_buffers(recorded, needed, model))
    translator = Translator(graph, recorded, values)
    for call in recording.used(
        recorded, [recorded.numbers[id(tensor)] for tensor in tensors.outputs.values()]
    ):
        translate(translator, call)
    for name, tensor in tensors.outputs.items():
        output = values[recorded.numbers[id(tensor)]]
        output.name = name
        graph.outputs.append(output)
    return ir.Model(graph, ir_version=IR_VERSION)


def _buffers(
    recorded: recording.Recording, needed: Sequence[recording.Call], model: PreTrainedModel
) -> dict[int, torch.Tensor]:
    """Tensor number → values of the buffers that are used and that checkpoints do not have: a model makes them itself."""
    taken = {number for call in needed for number in recording.tensors_of(call)}
    stored = _stored_buffers(model)
    made = {name: tensor for name, tensor in model.named_buffers() if name not in stored}
    numbers = {name: recorded.numbers.get(id(tensor)) for name, tensor in made.items()}
    wanted = {name: number for name, number in numbers.items() if number in taken}
    if not wanted:
        return {}
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        real = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype)
    return {number: real.get_buffer(name) for name, number in wanted.items() if number is not None}


def _stored_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that a checkpoint has, such as what a router was balanced by: they are read as parameters are."""
    stored = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Parameter → the other names of the same values: a checkpoint has a tied parameter under one of them."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {first: tuple(others) for first, *others in names.values() if others}


def _layers_path(model: nn.Module, layers: int) -> str:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return str(path)
    raise UnsupportedModel(f"{type(model).__name__} has no list of {layers} decoder layers")


def decoder_layers(config: PretrainedConfig, spec: ModelSpec, layers: int) -> nn.ModuleList:
    """The decoder layers of an architecture, if it has so many, without any memory."""
    with _named(config, spec):
        model = meta_model(config, layers, torch.float32)
        found = model.get_submodule(_layers_path(model, layers))
    assert isinstance(found, nn.ModuleList)
    return found


def layer_of(node: ir.Node, layers_path: str) -> int | None:
    """The decoder layer that a node belongs to, from the module that computes it; None outside of the layers."""
    scope, prefix = node.metadata_props.get("scope", ""), f"{layers_path}."
    return int(scope.removeprefix(prefix).split(".")[0]) if scope.startswith(prefix) else None


def rotary_tables(
    config: PretrainedConfig, module: str, length: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each float32 [length, pairs of a head], as the model's own rotary module makes them."""
    whole = meta_model(config, config.num_hidden_layers, torch.float32)  # the module may be one of a layer
    cos, sin = rotary.tables(whole, module, length)
    return cos.numpy(), sin.numpy()
