"""A tiny GPT with a real graph and a real tokenizer, built at once: random weights, one token a byte."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gptport import sampling_graph

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 16
HIDDEN = HEADS * HEAD_DIM
ALIKE = ((KV_HEADS, HEAD_DIM),) * LAYERS
UNLIKE = ((2, 16), (1, 32))
"""Heads of keys and values, and their width, of each layer."""
MAX_LENGTH = 600
VOCAB = 257
EOS = 256


def tokenizer() -> Tokenizer:
    """Byte-level, without merges; id 256 is the special token `<|end|>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    result = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken("<|end|>", special=True)])
    return result


def write(version_dir: Path, seed: int = 0, caches: Sequence[tuple[int, int]] = ALIKE) -> Path:
    """Write the version directory of a text model, whose layers have `caches`."""
    version_dir.mkdir(parents=True)
    onnx.save(graph(seed, caches), version_dir / "model.onnx")
    onnx.save(sampling_graph.model("float32"), version_dir / "sampler.onnx")
    tokenizer().save(str(version_dir / "tokenizer.json"))
    manifest = _manifest(caches)
    for path in sorted(version_dir.iterdir()):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][path.name] = {"bytes": len(content), "sha256": digest}
    (version_dir / "manifest.json").write_text(json.dumps(manifest))
    return version_dir


def graph(seed: int, caches: Sequence[tuple[int, int]] = ALIKE) -> onnx.ModelProto:
    """Embedding, layers of rotary attention with a residual, head; logits of the last valid position."""
    random = np.random.default_rng(seed)
    weights = {
        "embedding": random.normal(0, 1, (VOCAB, HIDDEN)),
        "head": random.normal(0, 1, (HIDDEN, VOCAB)),
    }
    for width in {head_dim for _, head_dim in caches}:
        angles = np.arange(MAX_LENGTH)[:, None] / 10000 ** (np.arange(0, width, 2) / width)
        weights |= {f"cos.{width}": np.cos(angles), f"sin.{width}": np.sin(angles)}
    nodes = [
        helper.make_node("ReduceMax", ["seqlens_k"], ["longest"], keepdims=0),
        helper.make_node("Add", ["longest", "one"], ["total"]),
        helper.make_node("Gather", ["embedding", "input_ids"], ["hidden.0"]),
    ]
    for layer, cache in enumerate(caches):
        nodes += _layer(layer, cache, weights, random)
    nodes += [
        helper.make_node("Cast", ["seqlens_k"], ["last_position"], to=TensorProto.INT64),
        helper.make_node("Slice", ["position_ids", "zeros", "ones", "ones"], ["first_position"]),
        helper.make_node("Unsqueeze", ["last_position", "ones"], ["last_column"]),
        helper.make_node("Sub", ["last_column", "first_position"], ["last_index"]),
        helper.make_node("Sub", ["last_index", "logits_offsets"], ["index"]),
        helper.make_node("Unsqueeze", ["index", "twos"], ["places"]),
        helper.make_node("GatherND", [f"hidden.{LAYERS}", "places"], ["found"], batch_dims=1),
        helper.make_node("Reshape", ["found", "flat"], ["asked_hidden"]),
        helper.make_node("MatMul", ["asked_hidden", "head"], ["logits"]),
    ]
    constants = {
        name: numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    }
    constants["one"] = numpy_helper.from_array(np.array(1, np.int32), "one")
    constants["ones"] = numpy_helper.from_array(np.array([1], np.int64), "ones")
    for name, values in (("zeros", [0]), ("twos", [2]), ("flat", [-1, HIDDEN]), ("logits_offsets", [0])):
        constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
    document = _manifest(caches)
    body = helper.make_graph(
        nodes,
        "tiny",
        [_value(tensor) for tensor in document["inputs"] + document["optional_inputs"]],
        [_value(tensor) for tensor in document["outputs"]],
        list(constants.values()),
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=opsets, ir_version=10)


def _layer(
    layer: int, cache: tuple[int, int], weights: dict[str, Any], random: np.random.Generator
) -> list[onnx.NodeProto]:
    kv_heads, head_dim = cache
    for name, width in (("q", HIDDEN), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
        weights[f"{name}.{layer}"] = random.normal(0, 0.2, (HIDDEN, width))
    source, target = f"hidden.{layer}", f"hidden.{layer + 1}"
    nodes = [
        helper.make_node("MatMul", [source, f"{name}.{layer}"], [f"{name}_out.{layer}"])
        for name in ("q", "k", "v")
    ]
    attention = helper.make_node(
        "GroupQueryAttention",
        [
            *(f"{name}_out.{layer}" for name in ("q", "k", "v")),
            *(f"past_key_values.{layer}.{kind}" for kind in ("key", "value")),
            *("seqlens_k", "total", f"cos.{head_dim}", f"sin.{head_dim}"),
        ],
        [f"attention.{layer}", f"present.{layer}.key", f"present.{layer}.value"],
        domain="com.microsoft",
        num_heads=HIDDEN // head_dim,
        kv_num_heads=kv_heads,
        do_rotary=1,
    )
    return [*nodes, attention, helper.make_node("Add", [source, f"attention.{layer}"], [target])]


def _value(tensor: dict[str, Any]) -> onnx.ValueInfoProto:
    dtype = helper.np_dtype_to_tensor_dtype(np.dtype(tensor["dtype"]))
    return helper.make_tensor_value_info(tensor["name"], dtype, tensor["shape"])


def _manifest(caches: Sequence[tuple[int, int]]) -> dict[str, Any]:
    shapes = [["batch", heads, "max_length", width] for heads, width in caches for _ in ("key", "value")]
    cache = [
        {
            "layer": layer,
            "kind": kind,
            "past": f"past_key_values.{layer}.{kind}",
            "present": f"present.{layer}.{kind}",
        }
        for layer in range(LAYERS)
        for kind in ("key", "value")
    ]
    ids = ["batch", "sequence"]
    return {
        "schema_version": 1,
        "name": "tiny",
        "graph": "model.onnx",
        "sampler": "sampler.onnx",
        "vocab_size": VOCAB,
        "max_length": MAX_LENGTH,
        "logits": "last",
        "tokens": {"bos": None, "eos": [EOS], "pad": EOS},
        "inputs": [
            {"name": "input_ids", "dtype": "int64", "shape": ids},
            {"name": "position_ids", "dtype": "int64", "shape": ids},
            {"name": "seqlens_k", "dtype": "int32", "shape": ["batch"]},
            *(
                {"name": tensor["past"], "dtype": "float32", "shape": s}
                for tensor, s in zip(cache, shapes, strict=True)
            ),
        ],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", VOCAB]},
            *(
                {"name": tensor["present"], "dtype": "float32", "shape": s}
                for tensor, s in zip(cache, shapes, strict=True)
            ),
        ],
        "optional_inputs": [{"name": "logits_offsets", "dtype": "int64", "shape": ["offsets"]}],
        "roles": {
            name: name for name in ("input_ids", "position_ids", "seqlens_k", "logits_offsets", "logits")
        },
        "kv_cache": {
            "layers": LAYERS,
            "kv_heads": caches[0][0] if len(set(caches)) == 1 else None,
            "head_dim": caches[0][1] if len(set(caches)) == 1 else None,
            "dtype": "float32",
            "tensors": cache,
        },
        "files": {},
    }
