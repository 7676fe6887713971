"""Where a decode step of gptport's graph spends its time, operator by operator, as onnxruntime's profiler sees it.

    python -m benchmarks.profile JOB.json OUT.json    the steps, in a process of their own

The profiler adds some microseconds to each node, so the sum is more than an unprofiled step takes.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import graph, process
from benchmarks.decode import Race, job, prepare
from benchmarks.environment import CACHE, OURS, ROOT
from benchmarks.peers import gptport
from benchmarks.peers import job as jobs

_WARM_UP_TOKENS = 8
_KERNEL = "_kernel_time"
_MATRIX = 100_000  # bytes; smaller weights are read in no time, and are not told apart
_ROWS = 10


@dataclass(frozen=True)
class Share:
    """What the nodes of one operator, that read the same weight of their layers, take of a decode step.

    Attributes:
        weight: the largest weight's name, `*` for the number of the layer; empty if they read none.
        calls: nodes a step.
        microseconds: a step, all of them together.
        bytes: of weights that they read in a step.
    """

    operator: str
    weight: str
    calls: float
    microseconds: float
    bytes: int


def write(race: Race, threads: int, folder: Path) -> str:
    """Write a Markdown page of the shares of a decode step to `folder`, the largest first; returns it."""
    asked = job(race, OURS, threads)
    prepare(asked, OURS)
    path, out = asked.folder.with_name("profile.job.json"), asked.folder.with_name("profile.json")
    asked.write(path)
    command = [sys.executable, "-m", "benchmarks.profile", str(path), str(out)]
    process.run(command, CACHE / "logs" / "profile.log", {"PYTHONPATH": str(ROOT)})
    found = json.loads(out.read_text(encoding="utf-8"))
    page = render(race.name, found["step"], [Share(**item) for item in found["shares"]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{race.name.replace('decode', 'profile', 1)}.md").write_text(page, encoding="utf-8")
    return page


def render(name: str, step: float, shares: list[Share]) -> str:
    """The table; `step` is what a whole run of the session takes, in microseconds."""
    rows = [
        f"| {share.operator} | {share.weight} | {share.calls:.0f} | {share.microseconds:.0f} "
        f"| {share.microseconds / step:.1%} | {_rate(share)} |"
        for share in shares[:_ROWS]
    ]
    rest = sum(share.microseconds for share in shares[_ROWS:])
    between = step - sum(share.microseconds for share in shares)
    return "\n".join(
        [
            f"# {name}: {step / 1000:.2f} ms a step",
            "",
            "| operator | weight | nodes | µs | share | GB/s |",
            "|---|---|---|---|---|---|",
            *rows,
            f"| all others | | | {rest:.0f} | {rest / step:.1%} | |",
            f"| between the operators | | | {between:.0f} | {between / step:.1%} | |",
            "",
        ]
    )


def _rate(share: Share) -> str:
    return f"{share.bytes / share.microseconds / 1000:.1f}" if share.weight else ""


def _run(asked: jobs.Job) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        session = _profiled(Path(folder) / "step")
        generate = gptport.load(asked)
        generate(_WARM_UP_TOKENS, lambda _: None)
        generate(asked.new_tokens, lambda _: None)
        events = json.loads(Path(session[0].end_profiling()).read_text(encoding="utf-8"))
    step, shares = summarize(
        events, asked.new_tokens - 1, graph.weights_read(gptport.version(asked) / "model.onnx")
    )
    return {"step": step, "shares": [asdict(share) for share in shares]}


def _profiled(prefix: Path) -> list[Any]:
    """Sessions made from now on are profiled, the backend's too, which has no switch for it; they appear in the list."""
    import onnxruntime

    made: list[Any] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.enable_profiling = True
            self.profile_file_prefix = str(prefix)

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    onnxruntime.SessionOptions, onnxruntime.InferenceSession = Options, Session
    return made


def summarize(
    events: list[dict[str, Any]], steps: int, weights: dict[str, dict[str, int]]
) -> tuple[float, list[Share]]:
    """The mean microseconds of the last `steps` runs, and the shares of it, the largest first.

    `events` are onnxruntime's trace, `weights` those that each node of the graph reads, with their bytes.
    """
    runs = [event for event in events if event.get("name") == "model_run"][-steps:]
    times: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for event in events:
        if event.get("name", "").endswith(_KERNEL) and event["ts"] >= runs[0]["ts"]:
            node = event["name"].removesuffix(_KERNEL)
            times[event["args"]["op_name"], _place(weights.get(node, {}))].append((node, event["dur"]))
    shares = [
        Share(
            operator,
            place,
            len(found) / steps,
            sum(duration for _, duration in found) / steps,
            sum(size for node in {node for node, _ in found} for size in weights.get(node, {}).values()),
        )
        for (operator, place), found in times.items()
    ]
    mean = sum(run["dur"] for run in runs) / steps
    return mean, sorted(shares, key=lambda share: -share.microseconds)


def _place(weights: dict[str, int]) -> str:
    largest = max((name for name in weights if weights[name] >= _MATRIX), key=weights.__getitem__, default="")
    return re.sub(r"\.\d+\.", ".*.", largest)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(_run(jobs.read(Path(sys.argv[1])))), encoding="utf-8")
