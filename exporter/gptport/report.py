"""What an export did and what an exported model is, as text for the terminal."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING

from . import adapters, genai, operator_counts
from .table import table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from .checkpoint import Checkpoint
    from .export import Exported
    from .manifest import Manifest
    from .onnx_directory import OnnxDirectory
    from .package import Packaged

_FUSIONS = {
    "pack_projections": "packed projections",
    "fuse_attention": "fused attention with in-place cache",
    "arrange_projections": "attention on packed rows",
    "fuse_skip_norm": "fused residual + norm",
    "fuse_bias_activation": "fused bias + GELU",
    "fuse_experts": "mixture of experts",
    "multiply_by_rows": "products by rows",
    "quantize_matrices": "matrices in integers",
    "quantize_experts": "mixtures of experts in integers",
}

_GROWS = ", grows with the text"
_POSITIONS = {"last": "the last position", "all": "every position"}


def exported(result: Exported, checkpoint: Checkpoint) -> str:
    """The end of `gptport export`."""
    manifest, parity, spec, lowering = result.manifest, result.parity, checkpoint.spec, result.lowering
    fusions = [
        f"{count} × {_FUSIONS[name]}"
        for name, count in lowering.changes.items()
        if count and name in _FUSIONS
    ]
    traced = (
        f"{lowering.traced_layers} of {spec.layers} layers"
        if lowering.traced_layers < spec.layers
        else "every layer"
    )
    longer = (
        f"; the checkpoint takes {spec.context_length}, see --max-length"
        if manifest.max_length < spec.context_length
        else ""
    )
    text = manifest.name
    rows = {
        "genai": _genai(manifest),
        "size": f"{_megabytes(sum(file.bytes for file in manifest.files.values()))} on disk, {manifest.precision}, "
        f"{lowering.bits_per_parameter:.3g} bits a parameter",
        "length": f"{manifest.max_length} tokens, {manifest.cache_bytes_per_token:,} bytes of KV cache each{longer}",
        "traced": f"{traced}; a layer of {len(lowering.before.nodes)} nodes became one of {len(lowering.after.nodes)}",
        "fused": ", ".join(fusions),
        **({"in floats": lowering.not_quantized} if lowering.not_quantized else {}),
        **({"in blocks": lowering.in_blocks} if lowering.in_blocks else {}),
        **({"not read": result.unread} if result.unread else {}),
        "logits": f"largest difference to torch {parity.max_abs_logit_difference:.2g}, "
        f"of logits up to {parity.max_abs_logit:.3g}{_how(result)}",
        "greedy": f"same token at {parity.greedy_agreement:.1%} of {parity.tokens} positions",
        "perplexity": f"{parity.perplexity:.4g} on {parity.text_tokens} tokens of text, {_rise(parity.perplexity_increase)}",
        "serve it": f"gptport serve {shlex.quote(str(result.repository))}",
        "ask it": f"gptport generate 'Once upon a time' --model {text}",
        "report": str(result.report),
    }
    return table([*_models(result.folders, manifest), *rows.items()])


def packaged(result: Packaged, source: OnnxDirectory) -> str:
    """The end of `gptport package`."""
    manifest, parity = result.manifest, result.parity
    what = _reference(manifest)
    rows = {
        "genai": _genai(manifest),
        "size": f"{_megabytes(sum(file.bytes for file in manifest.files.values()))} on disk, {manifest.precision}",
        "length": f"{manifest.max_length} tokens, {manifest.cache_bytes_per_token:,} bytes of KV cache each",
        "original": f"{source.graph.path}; there is no checkpoint: what follows compares with this graph, run by onnxruntime",
        "logits": f"largest difference to {what} {parity.max_abs_logit_difference:.2g}, "
        f"of logits up to {parity.max_abs_logit:.3g}",
        "greedy": f"same token at {parity.greedy_agreement:.1%} of {parity.tokens} positions",
        "perplexity": f"{parity.perplexity:.4g} on {parity.text_tokens} tokens of text, {parity.checkpoint_perplexity:.4g} by "
        f"{what}",
        "serve it": f"gptport serve {shlex.quote(str(next(iter(result.folders.values())).parent.parent))}",
        "ask it": f"gptport generate 'Once upon a time' --model {manifest.name}",
    }
    if manifest.kv_cache.grows:
        tokenizer = next(iter(result.folders.values())) / "tokenizer.json"
        rows |= {
            "no text": f"{manifest.name}, text in and text out, is not made: its engine needs a cache of fixed size (a "
            "GroupQueryAttention in every layer), such as gptport export makes of the checkpoint",
            "cache": "it grows: the client holds it, sends it with each request, and has it back longer",
            "ask it": f"{rows['ask it']} --loop client --tokenizer {shlex.quote(str(tokenizer))}",
        }
    rows["report"] = str(result.report)
    return table([*_models(result.folders, manifest), *rows.items()])


def inspected(folder: Path, manifest: Manifest) -> str:
    """What `gptport inspect` prints."""
    cache, tokens = manifest.kv_cache, manifest.tokens
    eos = ", ".join(map(str, tokens.eos)) or "none"
    verification = manifest.verification
    rows = {
        "model": f"{manifest.name}, in {folder}",
        "checkpoint": "{checkpoint} ({model_type}, {format}), sha256 {sha256:.16}…".format(**manifest.source),
        "graph": f"{manifest.graph}, {manifest.precision}, dialect {manifest.dialect}, IR {manifest.ir_version}, "
        + ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in manifest.opsets.items()),
        "length": f"{manifest.max_length:,} tokens, prompt and answer together",
        "vocabulary": f"{manifest.vocab_size:,} tokens; a text begins with {tokens.bos} and ends with {eos}",
        "KV cache": f"{_layers(manifest)}, {cache.dtype}{_GROWS * cache.grows}: "
        f"{manifest.cache_bytes_per_token:,} bytes a token",
        "logits": f"of {_POSITIONS[manifest.logits]}; largest difference to {_reference(manifest)} "
        f"{verification['max_abs_logit_difference']:.2g}, same greedy token at "
        f"{verification['greedy_agreement']:.1%} of {verification['tokens']} positions",
        "perplexity": f"{verification['perplexity']:.4g} on {verification['text_tokens']} tokens of text, "
        f"{verification['checkpoint_perplexity']:.4g} by {_reference(manifest)}",
        **({"CPU": f"needs {' or '.join(manifest.cpu_flags)}"} if manifest.cpu_flags else {}),
        **({"integers": integers} if (integers := operator_counts.in_integers(folder, manifest)) else {}),
        "genai": _genai(manifest),
        "adapters": _adapters(folder, manifest),
        "made with": ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items()),
    }
    caches = {name for tensor in cache.tensors for name in (tensor.past, tensor.present)}
    for heading, tensors in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        shown = [
            f"{t.name} {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors if t.name not in caches
        ]
        rows[heading] = "; ".join([*shown, f"{2 * cache.layers} of the KV cache"])
    rows |= {
        f"{name}": f"{_megabytes(file.bytes)}, sha256 {file.sha256[:16]}…"
        for name, file in manifest.files.items()
    }
    return table(list(rows.items()))


def _layers(manifest: Manifest) -> str:
    """How many layers have which heads; a layer has two tensors."""
    counts = Counter(manifest.cache_shapes[::2])
    return " + ".join(
        f"{n} layer{'s' * (n > 1)} × {heads} heads × {width}" for (heads, width), n in counts.items()
    )


def _models(folders: Mapping[str, Path], manifest: Manifest) -> list[tuple[str, str]]:
    """What each model is, the text model first."""
    if manifest.kv_cache.grows:
        said = "ids and the KV cache in, logits and the KV cache out: backend onnxruntime"
        return [(step, f"{folder}  ({said})") for step, folder in folders.items()]
    text, *steps = folders
    return [
        (text, f"{folders[text]}  (text in, text out: backend gptport)"),
        *(
            (step, f"{folders[step]}  (ids in, logits out: backend onnxruntime; shares the files)")
            for step in steps
        ),
    ]


def _reference(manifest: Manifest) -> str:
    """What the graph was compared with."""
    if manifest.kv_cache.grows:
        return "the graph without its cache"
    return "the original graph" if manifest.source["format"] == "onnx" else "torch"


def _genai(manifest: Manifest) -> str:
    if genai.CONFIG in manifest.files:
        return f"{genai.CONFIG}, {genai.GRAPH}: onnxruntime-genai loads the folder, on the same weights"
    return f"left out: {genai.obstacle(manifest) or 'exported by a gptport that did not write it'}"


def _adapters(folder: Path, manifest: Manifest) -> str:
    if not manifest.lora:
        return "none; an export with --lora takes some"
    return ", ".join(path.name for path in adapters.there(folder)) or "none yet"


def _how(result: Exported) -> str:
    """What was different from how a server runs the graph when it was compared."""
    said = [f"run in {result.parity.parts} parts"] if result.parity.parts > 1 else []
    if result.manifest.kv_cache.dtype == "bfloat16":
        said.append("computed in float32: onnxruntime has no bfloat16 on the CPU")
    return f" ({'; '.join(said)})" if said else ""


def _rise(share: float) -> str:
    return f"{share:+.2%} to torch" if abs(share) >= 5e-5 else "as in torch"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 else f"{size:,} bytes"
