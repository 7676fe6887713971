"""onnxruntime-genai: its model builder and its generator."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime_genai

if TYPE_CHECKING:
    from benchmarks.peers.job import Emit, Generate, Job


def prepare(job: Job) -> None:
    """The builder with its defaults for the CPU; then the threads, which only its configuration file sets."""
    build = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(job.checkpoint)]
    where = ["-o", str(job.folder), "-c", str(job.folder / "cache")]
    subprocess.run([*build, *where, "-p", job.precision, "-e", "cpu"], check=True)
    path = job.folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = job.threads
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def load(job: Job) -> Generate:
    """The generator, past and present in one buffer of the length that is needed."""
    model = onnxruntime_genai.Model(str(job.folder))

    def generate(new_tokens: int, emit: Emit) -> None:
        params = onnxruntime_genai.GeneratorParams(model)
        length = len(job.prompt) + new_tokens
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(np.array([job.prompt], np.int32))
        for _ in range(new_tokens):
            generator.generate_next_token()
            emit(int(generator.get_next_tokens()[0]))

    return generate
