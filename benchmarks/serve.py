"""Serving: streams through a real server, with the clients on the same cores."""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import checkpoints, decode, process, turns
from benchmarks.decode import PROMPT_TOKENS
from benchmarks.environment import CACHE, OURS, ROOT
from benchmarks.peers.job import Job
from benchmarks.results import Contestant, Result
from gptport import processor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHECKPOINT = "smollm2"
NEW_TOKENS = 64
IN_PROCESS = "in process"
SMOOTHQUANT = "gptport smoothquant"
IN_BLOCKS = "gptport in blocks"
_FIRST_AIM = 1.0
_PYTHON_AIM = 0.1
_MODEL = ("prefill", "decode")  # parts of a step that are the model's
_REMARKS = {
    IN_BLOCKS: "exported with --quantization rtn, the default",
    "vllm": "fp32; as it comes, it keeps a core for its frontend",
    "vllm_all_cores": "fp32; told to compute on all cores",
}


@dataclass(frozen=True)
class Race:
    """One number of streams in one precision of ours.

    Attributes:
        aim: how many times the tokens a second of each peer gptport means to give.
        peers: servers, always in fp32, or the loop in process, or our server with another export.
    """

    precision: str
    streams: int
    aim: float
    peers: tuple[str, ...] = ("vllm", "vllm_all_cores")

    @property
    def name(self) -> str:
        """As in the results."""
        return f"serve-{CHECKPOINT}-{self.precision}-{self.streams}"


RACES = (
    Race("fp32", 1, 0.93, (IN_PROCESS,)),
    Race("fp32", 16, 1.5),
    Race("int8", 16, 2.5, (SMOOTHQUANT, "vllm", "vllm_all_cores")),
)


@dataclass(frozen=True)
class Turn:
    """What one turn of one contestant gave.

    Attributes:
        rounds: round → stream → seconds since the round's begin at which each token came.
        step_seconds: part of the loop's steps → seconds.
    """

    rounds: tuple[tuple[tuple[float, ...], ...], ...]
    step_seconds: dict[str, float]
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Of one stream after its first token, as in process; of several all tokens, from asking to the last one."""
        if len(self.rounds[0]) == 1:
            return statistics.median((len(s) - 1) / (s[-1] - s[0]) for (s,) in self.rounds)
        return statistics.median(
            sum(map(len, streams)) / max(stream[-1] for stream in streams) for streams in self.rounds
        )

    @property
    def first_token(self) -> float:
        """Seconds from asking to the first token, the median of all streams."""
        return statistics.median(stream[0] for streams in self.rounds for stream in streams)


def run(race: Race, peers: Sequence[str], count: int, threads: int) -> tuple[Result, ...]:
    """Let gptport and `peers` take turns `count` times; tokens a second, and of servers the time to the first token."""
    ours = {OURS: _job(race.precision, OURS, threads)}
    if SMOOTHQUANT in peers and (lacking := processor.missing(processor.VNNI)):
        sys.stderr.write(f"{SMOOTHQUANT}: {lacking}\n")
        peers = [name for name in peers if name != SMOOTHQUANT]
    if SMOOTHQUANT in peers:
        ours[SMOOTHQUANT] = _job(race.precision, OURS, threads, ("--quantization=smoothquant",))
    for job in ours.values():
        decode.prepare(job, OURS)

    def take_turn(name: str) -> Turn:
        if name == IN_PROCESS:
            return _in_process(ours[OURS])
        if name in ours:
            return _said(name, _turn(ours[name], OURS, race.streams))
        return _said(name, _turn(_job("fp32", name, threads), name, race.streams))

    taken = turns.take_turns([OURS, *peers], count, take_turn)
    results = []
    for each, contestants in tables(race, taken):
        results.append(rates(each, contestants))
        if IN_PROCESS not in peers:
            results.append(_first(each, contestants))
    return tuple(results)


def tables(race: Race, taken: dict[str, list[Turn]]) -> Iterator[tuple[Race, dict[str, list[Turn]]]]:
    """What is compared with what: each export of ours with the peers, one by smoothquant with the other too."""
    peers = {name: found for name, found in taken.items() if name not in (OURS, SMOOTHQUANT)}
    yield race, {OURS: taken[OURS], **peers}
    if SMOOTHQUANT in taken:
        by_rows = replace(race, precision=f"{race.precision}-smoothquant")
        yield by_rows, {OURS: taken[SMOOTHQUANT], IN_BLOCKS: taken[OURS], **peers}


def _job(precision: str, server: str, threads: int, options: tuple[str, ...] = ()) -> Job:
    race = decode.Race(CHECKPOINT, precision, {}, options)
    folder = CACHE / "models" / server / f"{CHECKPOINT}-{race.variant}"
    checkpoint = checkpoints.checkpoint(CHECKPOINT)
    return Job(checkpoint, folder, precision, options, threads, race.prompt, NEW_TOKENS)


def _turn(job: Job, name: str, streams: int) -> Turn:
    job.folder.mkdir(parents=True, exist_ok=True)
    asked, result = job.folder / "serve.json", job.folder / "serve.turn.json"
    job.write(asked)
    command = [
        sys.executable,
        "-m",
        "benchmarks.served.turn",
        name,
        str(asked),
        str(streams),
        str(result),
    ]
    finished = process.run(command, CACHE / "logs" / f"{name}-serve.log", {"PYTHONPATH": str(ROOT)})
    found = json.loads(result.read_text(encoding="utf-8"))
    rounds = tuple(tuple(tuple(stream) for stream in streams) for streams in found["rounds"])
    wrong = {len(stream) for streams in rounds for stream in streams} - {job.new_tokens}
    if wrong:
        raise process.CommandFailedError(
            f"{name} gave {min(wrong)} tokens where {job.new_tokens} were asked for"
        )
    return Turn(rounds, found["step_seconds"], finished.peak_bytes)


def _in_process(job: Job) -> Turn:
    found = decode.take_turn(job, OURS)
    return Turn(((found.times,),), {}, found.peak_bytes)


def _said(name: str, turn: Turn) -> Turn:
    sys.stderr.write(
        f"{name:20} {turn.tokens_per_second:7.1f} tokens/s, first after {turn.first_token:.2f} s\n"
    )
    return turn


def rates(race: Race, taken: dict[str, list[Turn]]) -> Result:
    """Tokens a second of each contestant, and what our loop did meanwhile."""
    streams = "1 stream" if race.streams == 1 else f"{race.streams} streams"
    return Result(
        name=race.name,
        title=f"{CHECKPOINT} {race.precision} through Triton: {streams}, {PROMPT_TOKENS} prompt tokens, {NEW_TOKENS} new",
        unit="tokens/s",
        more_is_better=True,
        contestants=tuple(
            Contestant(
                name,
                tuple(turn.tokens_per_second for turn in found),
                max(turn.peak_bytes for turn in found),
                None if name in (OURS, IN_BLOCKS) else race.aim,
                _REMARKS.get(name, ""),
            )
            for name, found in taken.items()
        ),
        notes=_profile(taken[OURS]),
    )


def _first(race: Race, taken: dict[str, list[Turn]]) -> Result:
    return Result(
        name=f"{race.name}-first",
        title=f"{CHECKPOINT} {race.precision} through Triton: {race.streams} streams at once, time to first token",
        unit="ms, median of the streams",
        more_is_better=False,
        contestants=tuple(
            Contestant(
                name,
                tuple(turn.first_token * 1000 for turn in found),
                0,
                None if name in (OURS, IN_BLOCKS) else _FIRST_AIM,
                _REMARKS.get(name, ""),
            )
            for name, found in taken.items()
        ),
    )


def _profile(taken: Sequence[Turn]) -> tuple[str, ...]:
    """What the loop did in its steps, and how much of that is not the model."""
    parts = {part: sum(turn.step_seconds[part] for turn in taken) for part in taken[0].step_seconds}
    whole = sum(parts.values())
    python = 1 - sum(parts[part] for part in _MODEL) / whole
    verdict = "reached" if python < _PYTHON_AIM else "missed"
    listed = ", ".join(f"{part} {seconds / whole:.1%}" for part, seconds in parts.items())
    return (
        f"a step of the loop: {listed}",
        f"the loop's own Python takes {python:.1%} of its steps; the aim of less than {_PYTHON_AIM:.0%} is {verdict}",
    )
