"""CTranslate2: its converter for transformers and its generator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import ctranslate2

if TYPE_CHECKING:
    from benchmarks.peers.job import Emit, Generate, Job

_COMPUTE = {"fp32": "float32", "int8": "int8"}


def prepare(job: Job) -> None:
    """`ct2-transformers-converter`."""
    convert = [
        str(Path(sys.executable).with_name("ct2-transformers-converter")),
        "--model",
        str(job.checkpoint),
    ]
    kind = ["--quantization", _COMPUTE[job.precision], "--force"]
    subprocess.run([*convert, *kind, "--output_dir", str(job.folder)], check=True)


def load(job: Job) -> Generate:
    """The generator; it takes and gives tokens as text, so the vocabulary is looked up."""
    generator = ctranslate2.Generator(
        str(job.folder),
        "cpu",
        compute_type=_COMPUTE[job.precision],
        inter_threads=1,
        intra_threads=job.threads,
    )
    vocabulary = json.loads((job.folder / "vocabulary.json").read_text(encoding="utf-8"))
    prompt = [vocabulary[token] for token in job.prompt]

    def generate(new_tokens: int, emit: Emit) -> None:
        def step(result: ctranslate2.GenerationStepResult) -> bool:
            emit(result.token_id)
            return False

        generator.generate_batch(
            [prompt],
            min_length=new_tokens,
            max_length=new_tokens,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
            callback=step,
        )

    return generate
