"""OpenVINO GenAI: converted by optimum-intel, run by its LLM pipeline."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import openvino
import openvino_genai

if TYPE_CHECKING:
    from benchmarks.peers.job import Emit, Generate, Job


def prepare(job: Job) -> None:
    """`optimum-cli export openvino`, with the tokenizer that the pipeline asks for."""
    export = [
        str(Path(sys.executable).with_name("optimum-cli")),
        "export",
        "openvino",
        "--model",
        str(job.checkpoint),
    ]
    kind = ["--task", "text-generation-with-past", "--weight-format", job.precision]
    blocks = (
        ["--group-size", "32"] if job.precision == "int4" else []
    )  # its 128 does not divide every hidden size
    subprocess.run([*export, *kind, *blocks, str(job.folder)], check=True)


def load(job: Job) -> Generate:
    """The pipeline, told to compute in the precision of the checkpoint, cache included."""
    exact = (
        {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"} if job.precision == "fp32" else {}
    )
    pipeline = openvino_genai.LLMPipeline(
        str(job.folder), "CPU", PERFORMANCE_HINT="LATENCY", INFERENCE_NUM_THREADS=job.threads, **exact
    )
    prompt = openvino.Tensor(np.array([job.prompt], np.int64))

    def generate(new_tokens: int, emit: Emit) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        pipeline.generate(openvino_genai.TokenizedInputs(prompt, _ones(prompt)), config, Tokens(emit))

    return generate


def _ones(tensor: openvino.Tensor) -> openvino.Tensor:
    return openvino.Tensor(np.ones(tuple(tensor.shape), np.int64))


class Tokens(openvino_genai.StreamerBase):  # type: ignore[misc]
    """Hands on the ids as they come, not the text that becomes of them."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit

    def write(self, tokens: int | list[int]) -> openvino_genai.StreamingStatus:
        """Take a token or a few."""
        for token in tokens if isinstance(tokens, list) else [tokens]:
            self._emit(token)
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Nothing is held back."""
