"""transformers.exporters: the decode graph that transformers itself exports to ONNX, with its onnxruntime fusions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from transformers import AutoModelForCausalLM
from transformers.exporters.base import ExportedModel
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

if TYPE_CHECKING:
    from benchmarks.peers.job import Emit, Generate, Job


def prepare(job: Job) -> None:
    """Its export for generation: a graph for the prompt, and one for a token behind it."""
    model = AutoModelForCausalLM.from_pretrained(job.checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([job.prompt])
    exported = OnnxExporter().export_for_generation(
        model,
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
        OnnxConfig(dynamic=True, ort_fusions="cpu"),
    )
    exported.save_pretrained(job.folder)


def load(job: Job) -> Generate:
    """The exported model's own runners, which bind their inputs and outputs in place."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job.threads
    torch.set_num_threads(job.threads)
    runners = ExportedModel.from_pretrained(job.folder).to(session_options=settings).runners

    @torch.inference_mode()
    def generate(new_tokens: int, emit: Emit) -> None:
        ids, stage = torch.tensor([job.prompt]), "prefill"
        cache: dict[str, Any] = {}
        for length in range(len(job.prompt), len(job.prompt) + new_tokens):
            positions = torch.arange(length - ids.shape[1], length)[None]
            mask = torch.ones(1, length, dtype=torch.int64)
            out = runners[stage](input_ids=ids, attention_mask=mask, position_ids=positions, **cache)
            ids, stage = out.logits[:, -1].argmax(-1, keepdim=True), "decode"
            cache = {"past_key_values": out.past_key_values}
            emit(int(ids))

    return generate
