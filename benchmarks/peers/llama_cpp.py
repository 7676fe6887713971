"""llama.cpp, through llama-cpp-python: its own GGUF format, its own quantizer, one token a call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.peers.job import Emit, Generate, Job

_FILE_TYPES = {"int4": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "int8": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}


def prepare(job: Job) -> None:
    """The checkpoint in GGUF, float32, then what llama.cpp's quantizer makes of it."""
    exact = job.folder / "f32.gguf"
    _convert(job.checkpoint, exact)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[job.precision]
    failed = llama_cpp.llama_model_quantize(str(exact).encode(), str(_model(job)).encode(), params)
    if failed:
        raise RuntimeError(f"llama_model_quantize returned {failed}")
    exact.unlink()


def load(job: Job) -> Generate:
    """The model with a context of the length that is needed, evaluated step by step as its own loop does."""
    model = llama_cpp.Llama(
        str(_model(job)), n_ctx=job.length, n_threads=job.threads, n_threads_batch=job.threads, verbose=False
    )

    def generate(new_tokens: int, emit: Emit) -> None:
        model.reset()
        ids = list(job.prompt)
        for _ in range(new_tokens):
            model.eval(ids)
            logits = np.ctypeslib.as_array(model._ctx.get_logits(), shape=(1, model.n_vocab()))
            ids = [int(logits[0].argmax())]
            emit(ids[0])

    return generate


def _model(job: Job) -> Path:
    return job.folder / "model.gguf"


def _convert(checkpoint: Path, target: Path) -> None:
    """Write a Llama checkpoint as GGUF, with placeholders for its vocabulary: the prompts are token ids."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    _add_shape(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(checkpoint / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if "q_proj" in name or "k_proj" in name:
            values = _side_by_side(values, heads if "q_proj" in name else kv_heads)
        theirs = names.get_name(name, (".weight",))
        if theirs is None:
            raise ValueError(f"llama.cpp's Llama has no tensor for {name}")
        writer.add_tensor(theirs, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_freq_base((config.get("rope_parameters") or config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    pieces = [
        f"<{token}>" for token in range(config["vocab_size"])
    ]  # without a vocabulary it does not decode
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([gguf.TokenType.NORMAL] * len(pieces))


def _side_by_side(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """From rotary halves, as transformers keeps them, to pairs that lie side by side: [heads · head_dim, hidden]."""
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)
