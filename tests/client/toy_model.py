"""The toy model: a deterministic function of the ids so far, its tokenizers, its template, and sampling in the plainest way."""

from __future__ import annotations

import hashlib

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = 0
MAX_LENGTH = 64
TRAINING_TEXT = ["Grüße, 世界! 😀 The quick brown fox jumps over the lazy dog. 𝄞 don't stop  now"] * 2


def byte_level_tokenizer() -> Tokenizer:
    """A BPE tokenizer over bytes, as GPT-2 has: a character may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """A tokenizer with `▁` for spaces and a token for each byte, as Llama has."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *"▁abcdefghijklmnopqrstuvwxyz",
        "▁he",
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("▁", "h"), ("▁h", "e")][2:], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def next_logits(ids: list[int], vocab_size: int) -> np.ndarray:
    """Logits `[vocab]` that depend on every id and nothing else."""
    key = int.from_bytes(hashlib.sha256(np.asarray(ids, "<i8").tobytes()).digest()[:8], "little")
    logits = np.random.Generator(np.random.Philox(key=key)).normal(size=vocab_size).astype(np.float32) * 4
    logits[EOS] -= 4
    return logits


def reference_token(logits: np.ndarray, temperature: float, top_k: int, top_p: float, u: float) -> int:
    """docs/protocol.md, "Sampling, exactly", word by word."""
    if temperature == 0:
        return int(np.argmax(logits))
    scaled = logits / np.float32(temperature)
    order = sorted(range(len(scaled)), key=lambda token: (-scaled[token], token))
    order = order[:top_k] if top_k else order
    weights = np.exp(scaled[order].astype(np.float64) - np.float64(scaled[order[0]]))
    kept, total = [], 0.0
    for token, probability in zip(order, weights / weights.sum(), strict=True):
        total += probability
        kept.append((token, total))
        if total >= top_p:
            break
    return next((token for token, cumulative in kept if cumulative > u * total), kept[-1][0])


TEMPLATE = """{% for message in messages %}
{% if message.role == 'tool' %}
{{ raise_exception('there are no tools') }}
{% endif %}
{{ message.role }}: {{ message.content }}
{% endfor %}
{% if add_generation_prompt %}
assistant:{% endif %}
"""


def render(messages: list[dict[str, str]]) -> str:
    """What the template makes of a conversation."""
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant:"
