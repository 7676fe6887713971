"""Makes the graphs in this folder: tiny random models, written by the exporters that `gptport package` takes directories of.

Run it with an interpreter that has the tool, from this folder:

    python make.py genai TOKENIZER  # onnxruntime-genai 0.18.0 (benchmarks/peers/genai.txt)
    python make.py optimum          # optimum-onnx 0.1.0, optimum 2.1.0, transformers 4.57.6, torch 2.13.0, onnx 1.23.2
    python make.py merged           # the same

The builder wants a tokenizer to copy: TOKENIZER is a directory with one, such as the sample gpt2-tiny. The tests add that
tokenizer again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
LLAMA = LlamaConfig(
    vocab_size=384,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=128,
    bos_token_id=0,
    eos_token_id=0,
    tie_word_embeddings=False,
)

GPT2 = GPT2Config(
    vocab_size=384,
    n_embd=16,
    n_layer=2,
    n_head=2,
    n_positions=128,
    bos_token_id=0,
    eos_token_id=0,
)


def save(model, folder: Path) -> Path:
    """A model with random weights, large enough to tell tokens apart."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.0 if parameter.ndim > 1 else 1.0, 0.2)
    model.save_pretrained(folder)
    return folder


def genai(work: Path) -> None:
    """Its model builder, in float32 and with weights of 4 bits."""
    model = save(LlamaForCausalLM(LLAMA), work / "llama")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sys.argv[2] + "/" + file, model)
    for precision in ("fp32", "int4"):
        made = work / precision
        build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(made)]
        subprocess.run([*build, "-c", str(work / "cache"), "-p", precision, "-e", "cpu"], check=True)
        keep(made, f"genai-{precision}", "model.onnx", "model.onnx.data", "genai_config.json")


def optimum(work: Path) -> None:
    """With past, whose length may be 0."""
    from optimum.exporters.onnx import main_export

    source = save(LlamaForCausalLM(LLAMA), work / "checkpoint")
    main_export(str(source), work, task="text-generation-with-past", library_name="transformers")
    keep(work, "optimum-llama", "model.onnx", "config.json", "generation_config.json")
    (HERE / "optimum-llama/checkpoint").mkdir()
    for file in ("model.safetensors", "config.json"):
        shutil.copy(source / file, HERE / "optimum-llama/checkpoint")


def merged(work: Path) -> None:
    """Without and with past in one graph, as optimum wrote them before 2.0 and transformers.js took them."""
    from optimum.exporters.onnx import export
    from optimum.exporters.onnx.model_configs import GPT2OnnxConfig
    from optimum.onnx import merge_decoders

    source = save(GPT2LMHeadModel(GPT2), work)
    model = GPT2LMHeadModel.from_pretrained(source).eval()
    for past, made in ((False, "without"), (True, "with")):
        config = GPT2OnnxConfig(model.config, task="text-generation", use_past=True, use_past_in_inputs=past)
        (work / made).mkdir()
        export(model, config, work / made / "model.onnx")
    merge_decoders(
        work / "without/model.onnx",
        work / "with/model.onnx",
        save_path=work / "decoder_model_merged.onnx",
        strict=False,
    )
    keep(work, "optimum-merged", "decoder_model_merged.onnx", "config.json", "generation_config.json")


def keep(made: Path, name: str, *files: str) -> None:
    """Put what is needed beside this file."""
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in files:
        shutil.copy(made / file, target)


if __name__ == "__main__":
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        {"genai": genai, "optimum": optimum, "merged": merged}[sys.argv[1]](Path(folder))
