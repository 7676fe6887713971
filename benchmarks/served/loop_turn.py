"""One turn of one loop over one transport: a server started, warmed up, asked for one answer after the other, and stopped.

python -m benchmarks.served.loop_turn WAY JOB.json RESULT.json TOKENS…

Server and client share the first `job.threads` cores of those that there are.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import job as jobs
from benchmarks.transports import WAYS
from gptport import server
from gptport_client import Client, SamplingParams

if TYPE_CHECKING:
    from benchmarks.transports import Way

_WARM_UP = 8  # tokens of the prompt, and new ones


def main(name: str, job_file: str, result_file: str, *lengths: str) -> None:
    """Write, for each length of the prompt, the tokens and the seconds at which each was known."""
    job, way = jobs.read(Path(job_file)), WAYS[name]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    with server.running(job.folder, ["model"]) as started:
        address = started.address
        with Client(
            address.http_url if way.protocol == "http" else address.grpc_url, model="model"
        ) as client:
            _answer(client, way, _WARM_UP, _WARM_UP)
            found = {length: _answer(client, way, int(length), job.new_tokens) for length in lengths}
    Path(result_file).write_text(json.dumps(found), encoding="utf-8")


def _answer(client: Client, way: Way, length: int, new_tokens: int) -> dict[str, list[float]]:
    """Greedy, past any end of sequence."""
    # No two lengths begin alike: nothing of one prompt can be used for another.
    prompt = [1000 + length + 7 * place for place in range(length)]
    tokens: list[float] = []
    times: list[float] = []
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    for chunk in client.stream(prompt, params, loop=way.loop, transport=way.transport):
        times += [time.perf_counter()] * len(chunk.token_ids)
        tokens += chunk.token_ids
    return {"tokens": tokens, "times": times}


if __name__ == "__main__":
    main(*sys.argv[1:])
