"""What transformers generates: the models, the prompts, and the greedy tokens that the exported models are held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MODELS = ("gpt2-tiny", "smollm2")
NEW_TOKENS = 64

# Of different lengths, from one word to more than one prefill step takes.
PROMPTS = (
    "The capital of France is",
    "Hello",
    "Once upon a time there was a small dragon who was afraid of fire, and",
    "def fibonacci(n):\n",
    "Müller, Çelik und Nuñez aßen im Café – 東京 und Москва sind weit. Danach",
    "1, 2, 3, 4, 5, 6, 7,",
    "The three most important things about a garden are water, light and patience. " * 2,
    "Dear Sir or Madam,\n\nI am writing to you about the",
)


def generate(checkpoint: Path) -> dict[str, list[int]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = {}
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
        texts[prompt] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return texts
