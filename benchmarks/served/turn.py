"""One turn of one server: started, warmed up, asked by many streams at once, and stopped.

python -m benchmarks.served.turn SERVER JOB.json STREAMS RESULT.json

Server and clients share the first `job.threads` cores of those that there are. Every prompt begins with another token, so
that no server can take one's keys and values for another's.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peers import job as jobs

ROUNDS = 3
_APART = 101  # ids between the prompts of two streams; the ids of one prompt go up by 7


def main(name: str, job_file: str, streams: str, result_file: str) -> None:
    """Write, for every round, stream by stream, the seconds since the round's begin at which each token came."""
    job = jobs.read(Path(job_file))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    server = importlib.import_module(f"benchmarks.served.{name}")
    with server.running(job) as where:
        _round(server, where, job, int(streams), 0)
        before = server.step_seconds(where)
        rounds = [_round(server, where, job, int(streams), number + 1) for number in range(ROUNDS)]
        after = server.step_seconds(where)
    parts = {part: seconds - before.get(part, 0.0) for part, seconds in after.items()}
    Path(result_file).write_text(json.dumps({"rounds": rounds, "step_seconds": parts}), encoding="utf-8")


def _round(server: Any, where: Any, job: jobs.Job, streams: int, number: int) -> list[list[float]]:
    """All streams at once."""
    return asyncio.run(_all(server, where, job, range(number * streams, (number + 1) * streams)))


async def _all(server: Any, where: Any, job: jobs.Job, streams: range) -> list[list[float]]:
    began = time.perf_counter()
    times: list[list[float]] = [[] for _ in streams]

    async def one(place: int, stream: int) -> None:
        prompt = [token + stream * _APART for token in job.prompt]
        now = time.perf_counter
        await server.ask(
            where, prompt, job.new_tokens, lambda tokens: times[place].extend([now() - began] * tokens)
        )

    await asyncio.gather(*(one(place, stream) for place, stream in enumerate(streams)))
    return times


if __name__ == "__main__":
    main(*sys.argv[1:])
