"""What the manifest says of a graph: its tensors first, then what is known once it was written and compared."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from typing import TYPE_CHECKING

from . import processor, sampling_graph
from .dialects import onnxruntime as dialect
from .errors import UnsupportedModel
from .lora import stretches
from .manifest import File, KVCache, Manifest, Projection, Tensor, Tokens, cache_tensors
from .passes import multiply_by_rows
from .passes.add_adapters import DOWN, ROWS, UP, adapted

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

    from .checkpoint import Checkpoint
    from .precision import Precision
    from .verify import Parity
    from .weights import Weight

GRAPH = "model.onnx"
_VERIFICATION = (
    "tokens",
    "max_abs_logit_difference",
    "greedy_agreement",
    "text_tokens",
    "text_greedy_agreement",
    "checkpoint_perplexity",
    "perplexity",
)
_TOOLS = ("gptport", "torch", "transformers", "onnx-ir", "onnxruntime")


def described(
    model: ir.Model, checkpoint: Checkpoint, name: str, precision: Precision, max_length: int
) -> Manifest:
    """The manifest of a graph, without what is known only when it was written and compared."""
    spec = checkpoint.spec
    inputs = [tensor(value) for value in model.graph.inputs if not value.is_initializer()]
    optional = [tensor(value) for value in model.graph.inputs if value.is_initializer()]
    outputs = [tensor(value) for value in model.graph.outputs]
    pasts, presents = inputs[3:], outputs[1:]
    if len(pasts) != 2 * spec.layers:
        raise UnsupportedModel(
            f"{spec.model_type} has {spec.layers} layers, but {len(pasts) // 2} with a cache"
        )
    tensors = cache_tensors(pasts, presents)
    by_rows = any(node.op_type == multiply_by_rows.OPERATOR for node in model.graph)
    return Manifest(
        name=name,
        precision=precision.name,
        dialect=dialect.NAME,
        opsets=dict(model.opset_imports),
        ir_version=model.ir_version,
        graph=GRAPH,
        sampler=sampling_graph.GRAPH,
        vocab_size=spec.vocab_size,
        max_length=max_length,
        logits="last",
        tokens=Tokens(spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        optional_inputs=tuple(optional),
        lora=tuple(_projection(*each, checkpoint) for each in adapted(model.graph).items()),
        roles={
            name: name
            for name in (*(each.name for each in inputs[:3]), dialect.LOGITS_OFFSETS, outputs[0].name)
        },
        cpu_flags=processor.VNNI if by_rows else (),
        kv_cache=KVCache(spec.layers, *_alike(pasts), pasts[0].dtype, tensors),
        source={},
        verification={},
        tools={},
        files={},
    )


def _alike(pasts: Sequence[Tensor]) -> tuple[int | None, int | None]:
    """Heads and their width of all tensors of the cache; None where they differ."""
    shapes = {(past.shape[1], past.shape[3]) for past in pasts}
    heads, width = shapes.pop()
    return (None, None) if shapes else (int(heads), int(width))


def _projection(branch: str, weight: Weight, checkpoint: Checkpoint) -> Projection:
    """What a branch for adapters stands beside, by the names of the checkpoint."""
    modules = [name.removesuffix(".weight") for name in weight.names]
    features = [checkpoint.shape(name)[weight.axis] for name in weight.names]
    return Projection(
        modules=dict(zip(modules, features, strict=True)),
        order=stretches(weight.order),
        down=branch + DOWN,
        up=branch + UP,
        rows=branch + ROWS,
    )


def tensor(value: ir.Value) -> Tensor:
    """An input or output of a graph, as the manifest has it."""
    assert value.dtype is not None
    assert value.shape is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)
    return Tensor(str(value.name), value.dtype.numpy().name, shape)


def measured(
    manifest: Manifest, checkpoint: Checkpoint, sha256: str, files: dict[str, File], parity: Parity
) -> Manifest:
    """The manifest with what is known only now."""
    return replace(
        manifest,
        source={
            "checkpoint": checkpoint.name,
            "model_type": checkpoint.spec.model_type,
            "format": checkpoint.format,
            "sha256": sha256,
        },
        verification={field: getattr(parity, field) for field in _VERIFICATION},
        tools={tool: importlib.metadata.version(tool) for tool in _TOOLS},
        files=files,
    )
