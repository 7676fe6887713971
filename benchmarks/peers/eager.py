"""transformers, eager: the model in torch with its own growing cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from benchmarks.peers.job import Emit, Generate, Job


def prepare(job: Job) -> None:
    """Nothing: transformers runs the checkpoint as it is."""


def load(job: Job) -> Generate:
    """The model in float32, run by a greedy loop without the bookkeeping of `generate`."""
    torch.set_num_threads(job.threads)
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(new_tokens: int, emit: Emit) -> None:
        ids, cache = torch.tensor([job.prompt]), None
        for _ in range(new_tokens):
            out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            emit(int(ids))

    return generate
