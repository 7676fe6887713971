"""A small random model of each architecture, and the table of what became of it: docs/architectures.md.

`make architectures` writes the table; test_architectures.py holds the exporter to it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import onnx
import onnxruntime
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from gptport import console, samples, verify
from gptport.checkpoint import open_checkpoint
from gptport.errors import GptportError
from gptport.export import export
from gptport.precision import by_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = """
    gpt2 gpt_neo gptj gpt_neox codegen opt bloom falcon mpt gpt_bigcode starcoder2 llama mistral mixtral qwen2 qwen3 gemma gemma2
    gemma3_text phi phi3 stablelm olmo olmo2 granite cohere smollm3 gpt_oss nemotron persimmon xglm biogpt
""".split()  # noqa: SIM905 - thirty quoted names would be harder to read
LENGTH = 64
TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"

# Set where a configuration has the field, under whichever name. The window is shorter than the texts of the verification.
_SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 192),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 384,
    "sliding_window": 8,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
_OF_ITS_OWN = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 16},
    "codegen": {"rotary_dim": 16},
    "gpt_neox": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    },
    "stablelm": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    },
}


class _Silent:
    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        yield lambda _: None


def write_model(name: str, folder: Path, tokenizer: Path) -> None:
    """A checkpoint with random weights, wide enough that every part of the model tells in its logits."""
    defaults = CONFIG_MAPPING[name]()
    fields = {*vars(defaults), *getattr(defaults, "attribute_map", {})}
    shape = {key: value for key, value in _SMALL.items() if key in fields}
    if getattr(defaults, "layer_types", None):
        shape["layer_types"] = defaults.layer_types[:4]
    config = CONFIG_MAPPING[name](**{**shape, **_OF_ITS_OWN.get(name, {})})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
        else:
            torch.nn.init.normal_(parameter, 1.0, 0.1)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)


def left_to_onnxruntime(graph: Path) -> list[str]:
    """The operators of which onnxruntime's own optimizer would have more or fewer."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(graph.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options)
    before, after = (
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (graph, options.optimized_model_filepath)
    )
    return sorted(op for op in before | after if before[op] != after[op])


def row(name: str, folder: Path, tokenizer: Path) -> str:
    """What becomes of an architecture, as a row of the table."""
    try:
        write_model(name, folder / name, tokenizer)
        source = open_checkpoint(str(folder / name))
        with patch.object(verify, "_DECODE_STEPS", 16):
            result = export(
                source, folder / "repository", name.replace("_", "-"), by_name("fp32"), LENGTH, _Silent()
            )
    except GptportError as error:
        return f"| {name} | refused | {' '.join(str(error).split())[:160]} |"
    except (AttributeError, TypeError, ValueError) as error:
        return f"| {name} | no model | the small model cannot be made: {' '.join(str(error).split())[:120]} |"
    fused = ", ".join(
        f"{count} {rewrite}"
        for rewrite, count in result.changes.items()
        if count and rewrite not in ("lower", "cancel_views")
    )
    parity = f"{result.parity.max_abs_logit_difference:.0e} of {result.parity.max_abs_logit:.0f}"
    graph = onnx.load(
        next(iter(result.folders.values())) / result.manifest.graph, load_external_data=False
    ).graph
    nodes = f"{len(graph.node)} nodes"
    left = left_to_onnxruntime(next(iter(result.folders.values())) / result.manifest.graph)
    nodes += f" (onnxruntime still rewrites {', '.join(left)})" if left else ""
    return f"| {name} | exact | {parity}; greedy {result.parity.greedy_agreement:.0%}; {nodes}; {fused} |"


def main() -> int:
    """Write the table."""
    console.quiet_transformers()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = samples.sample("gpt2-tiny", Path(folder) / "tokenizer", _Silent())
        rows = [row(name, Path(folder), tokenizer) for name in NAMES]
    exact = sum("| exact |" in line for line in rows)
    head = f"""# Architectures

`make architectures` writes this table. For each type a small random model (4 layers, 4 heads) is exported in fp32
and compared with torch: a prefill of several rows and one in two chunks, a ragged batch of prefills, and 16 decode steps of
that batch in place. {exact} of {len(rows)} are exact; the others are refused with the reason, and nothing is written for them.

| type | export | largest logit difference, greedy agreement, nodes in all, what was fused; or the reason |
|---|---|---|
"""
    TABLE.write_text(head + "\n".join(rows) + "\n")
    sys.stdout.write("\n".join(rows) + f"\n{exact} of {len(rows)} exact\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
