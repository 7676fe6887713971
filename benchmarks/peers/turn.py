"""One turn of one peer, in a fresh process of the peer's environment.

python -m benchmarks.peers.turn PEER prepare JOB.json
python -m benchmarks.peers.turn PEER decode JOB.json RESULT.json
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.peers import job as jobs

_WARM_UP_TOKENS = 8


def main(peer: str, action: str, job_file: str, *result_file: str) -> None:
    """Prepare the checkpoint, or decode and write the tokens and the seconds at which each was known."""
    job = jobs.read(Path(job_file))
    module = importlib.import_module(f"benchmarks.peers.{peer}")
    if action == "prepare":
        module.prepare(job)
        return
    generate: jobs.Generate = module.load(job)
    generate(_WARM_UP_TOKENS, lambda _: None)
    tokens: list[int] = []
    times: list[float] = []

    def emit(token: int) -> None:
        times.append(time.perf_counter())
        tokens.append(int(token))

    start = time.perf_counter()
    generate(job.new_tokens, emit)
    Path(result_file[0]).write_text(
        json.dumps({"tokens": tokens, "times": [at - start for at in times]}), encoding="utf-8"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # some peers crash or hang while they take themselves apart, after the measuring
