"""What lets onnxruntime-genai run a version folder: genai_config.json, and genai.onnx, a second graph on the same weights.

It differs from the graph that is served in what onnxruntime-genai gives and wants, so that one graph cannot be both:

- It has no `seqlens_k`. onnxruntime-genai pads rows on the right, gives a row of n tokens the positions 0 … n − 1, 0, 0, …, and
  counts on from n when it decodes: the largest position of a row is what `seqlens_k` would be.
- `logits` is [batch, 1, vocab], whose 1 says that only the last valid position is there.

Read for 0.18: https://github.com/microsoft/onnxruntime-genai, src/config.h, src/models.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest

CONFIG = "genai_config.json"
GRAPH = "genai.onnx"

_MODEL_TYPE = "decoder"
"""Any decoder with a key and a value tensor for each layer; by `gpt2` it means one that has both in one tensor."""

_SEARCH = (
    "do_sample",
    "min_length",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
)
"""What generation_config.json and onnxruntime-genai call by the same name."""


def obstacle(manifest: Manifest) -> str | None:
    """Why onnxruntime-genai cannot run a model, None if it can."""
    cache = manifest.kv_cache
    if cache.grows:
        return "its cache grows, and the files are made for one of fixed size"
    pasts = {tensor.past for tensor in cache.tensors}
    first, *others = (each for each in manifest.inputs if each.name in pasts)
    other = next((each for each in others if each.shape != first.shape), None)
    if other is None:
        return None
    return (
        f"{other.name} is [{', '.join(map(str, other.shape))}], and for onnxruntime-genai the layers' caches are all alike, "
        f"[{', '.join(map(str, first.shape))}] in {first.name}"
    )


def write(folder: Path, manifest: Manifest) -> None:
    """Write both files beside the graph that is there; neither if there is an obstacle. The weights are not read."""
    if obstacle(manifest) is None:
        _write_graph(folder, manifest)
        config = json.dumps(_config(manifest, _search(folder)), indent=2)
        (folder / CONFIG).write_text(config + "\n")


def _write_graph(folder: Path, manifest: Manifest) -> None:
    import onnx_ir as ir

    from .passes import constant, insert_before, replace_value

    model = ir.load(folder / manifest.graph)
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    optional = {tensor.name for tensor in manifest.optional_inputs}
    seqlens_k, positions = (inputs[manifest.roles[role]] for role in ("seqlens_k", "position_ids"))
    graph.inputs[:] = [
        value for name, value in inputs.items() if value is not seqlens_k and name not in optional
    ]

    largest = ir.node("ReduceMax", [positions, constant(graph, [1])], {"keepdims": 0})
    cast = ir.node("Cast", largest.outputs, {"to": ir.DataType.INT32})
    insert_before(graph[0], [largest, cast])
    replace_value(seqlens_k, cast.outputs[0])

    (logits,) = (value for value in graph.outputs if value.name == manifest.roles["logits"])
    unsqueeze = ir.node("Unsqueeze", [logits, constant(graph, [1])])
    graph.append(unsqueeze)
    (out,) = unsqueeze.outputs
    out.name, logits.name = logits.name, f"{logits.name}.rows"
    out.type, out.shape = logits.type, ir.Shape(["batch", 1, manifest.vocab_size])
    graph.outputs[list(graph.outputs).index(logits)] = out
    ir.save(model, folder / GRAPH)


def _config(manifest: Manifest, search: dict[str, Any]) -> dict[str, Any]:
    """genai_config.json: https://onnxruntime.ai/docs/genai/reference/config.html"""
    roles, cache, tokens = manifest.roles, manifest.kv_cache, manifest.tokens
    templates = {tensor.kind: tensor for tensor in cache.tensors if tensor.layer == 0}
    pad = next((n for n in (tokens.pad, *tokens.eos, tokens.bos) if n is not None), 0)
    return {
        "model": {
            "type": _MODEL_TYPE,
            "vocab_size": manifest.vocab_size,
            "context_length": manifest.max_length,
            **({} if tokens.bos is None else {"bos_token_id": tokens.bos}),
            "eos_token_id": list(tokens.eos),
            "pad_token_id": pad,
            "decoder": {
                "filename": GRAPH,
                "num_hidden_layers": cache.layers,
                "num_key_value_heads": cache.kv_heads,
                "head_size": cache.head_dim,
                "inputs": {
                    "input_ids": roles["input_ids"],
                    "position_ids": roles["position_ids"],
                    **{f"past_{kind}_names": _numbered(each.past) for kind, each in templates.items()},
                },
                "outputs": {
                    "logits": roles["logits"],
                    **{f"present_{kind}_names": _numbered(each.present) for kind, each in templates.items()},
                },
            },
        },
        "search": {**search, "past_present_share_buffer": True},
    }


def _numbered(first: str) -> str:
    """The pattern of the layers' names, from that of layer 0."""
    assert first.count("0") == 1
    return first.replace("0", "%d")


def _search(folder: Path) -> dict[str, Any]:
    """The checkpoint's defaults; none where it has none that can be read."""
    try:
        stored = json.loads((folder / "generation_config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return {name: stored[name] for name in _SEARCH if stored.get(name) is not None}
