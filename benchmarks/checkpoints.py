"""The weights that all contestants run, as Hugging Face directories in float32 or bfloat16.

python -m benchmarks.checkpoints NAME DIR    write one; the harness does that in a process of its own
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environment import CACHE

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel


def checkpoint(name: str) -> Path:
    """The directory of the checkpoint `name`, made when it is first needed."""
    folder = CACHE / "checkpoints" / name
    if not (folder / "config.json").is_file():
        sys.stderr.write(f"making the checkpoint {name}\n")
        subprocess.run([sys.executable, "-m", "benchmarks.checkpoints", name, str(folder)], check=True)
    return folder


def _smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct, trained: Llama's shape, 30 layers, hidden 576, vocabulary 49,152, tied."""
    subprocess.run([sys.executable, "-m", "gptport", "sample", "smollm2", "-o", str(folder)], check=True)


def _gpt2_124m(folder: Path) -> None:
    """GPT-2's smallest shape, random: 12 layers, hidden 768, vocabulary 50,257, tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    _save(lambda: GPT2LMHeadModel(GPT2Config()), 50_257, folder)


def _llama_1b(folder: Path) -> None:
    """TinyLlama's shape, random, bfloat16, in several files: 1.1 billion parameters, 22 layers, hidden 2048."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        intermediate_size=5632,
        vocab_size=32_000,
        max_position_embeddings=2048,
    )
    _save(lambda: LlamaForCausalLM(config), config.vocab_size, folder, dtype="bfloat16")


def _save(make: Callable[[], PreTrainedModel], vocab_size: int, folder: Path, dtype: str = "float32") -> None:
    """Write a random model, the same one every time, and a tokenizer that converters ask for and no measuring uses."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    _save_tokenizer(vocab_size, folder)
    make().save_pretrained(folder, max_shard_size="500MB")


def _save_tokenizer(vocab_size: int, folder: Path) -> None:
    """Byte-level, without merges; the tokens beyond the bytes are names that no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [f"<{number}>" for number in range(len(pieces), vocab_size)]
    tokenizer = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


_MAKERS: dict[str, Callable[[Path], None]] = {
    "smollm2": _smollm2,
    "gpt2-124m": _gpt2_124m,
    "llama-1b": _llama_1b,
}


if __name__ == "__main__":
    _MAKERS[sys.argv[1]](Path(sys.argv[2]))
