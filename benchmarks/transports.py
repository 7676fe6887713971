"""What a token costs in each loop and over each transport, through a real Triton, behind texts of several lengths."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import checkpoints, decode, process, turns
from benchmarks.environment import CACHE, OURS, ROOT
from benchmarks.peers.job import Job
from benchmarks.results import Contestant, Result
from gptport import triton_install

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client import Loop, StepTransport

CHECKPOINT, PRECISION = "smollm2", "fp32"
NEW_TOKENS = 64
BEHIND = (16, 240, 1000)
_STAND_IN = (
    "NAME_step and NAME_kv run in this repository's stand-in for Triton's onnxruntime backend, which copies keys and values: "
    "once a token for the state, there and back for shared memory. The stock backend copies neither, and was not measured here."
)


@dataclass(frozen=True)
class Way:
    """A loop, and how its requests travel."""

    protocol: str
    loop: Loop
    transport: StepTransport = "auto"


SERVER = "server loop, gRPC"
WAYS = {
    SERVER: Way("grpc", "server"),
    "client loop, state, gRPC": Way("grpc", "client", "state"),
    "client loop, state, HTTP": Way("http", "client", "state"),
    "client loop, shared memory, gRPC": Way("grpc", "client", "shared_memory"),
}


@dataclass(frozen=True)
class Race:
    """All ways, behind so many tokens."""

    behind: int

    @property
    def name(self) -> str:
        """As in the results."""
        return f"transports-{CHECKPOINT}-{PRECISION}-{self.behind:04}"


RACES = tuple(map(Race, BEHIND))


@dataclass(frozen=True)
class Answer:
    """What one way gave behind one prompt: the tokens, and the seconds at which each was known."""

    tokens: tuple[int, ...]
    times: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """A token, after the first, whose time is the prompt's. Those that came with the first are not counted."""
        first, last = self.times[0], self.times[-1]
        counted = sum(at > first for at in self.times)
        return 1000 * (last - first) / counted


Turn = dict[int, Answer]  # by the tokens before


def run(races: Sequence[Race], count: int, threads: int) -> tuple[Result, ...]:
    """Let the ways take turns `count` times, each in fresh processes; a result for each race."""
    job = _job(threads)
    decode.prepare(job, OURS)
    taken = turns.take_turns(list(WAYS), count, lambda name: _turn(job, name, races))
    notes = (_STAND_IN,) if triton_install.find().stub is not None else ()
    return tuple(compare(race, taken, notes) for race in races)


def compare(race: Race, taken: dict[str, list[Turn]], notes: tuple[str, ...] = ()) -> Result:
    """Milliseconds a token of each way, the server's loop first."""
    answers = {name: [turn[race.behind] for turn in found] for name, found in taken.items()}
    return Result(
        name=race.name,
        title=f"{CHECKPOINT} {PRECISION} through Triton: a token behind {race.behind} tokens, {NEW_TOKENS} new, one sequence",
        unit="ms/token",
        more_is_better=False,
        contestants=tuple(
            Contestant(
                name,
                tuple(answer.milliseconds for answer in found),
                0,
                remark="" if name == SERVER else _agreement(answers[SERVER], found),
            )
            for name, found in answers.items()
        ),
        notes=notes,
    )


def _job(threads: int) -> Job:
    folder = CACHE / "models" / OURS / f"{CHECKPOINT}-{PRECISION}-transports"
    checkpoint = checkpoints.checkpoint(CHECKPOINT)
    return Job(checkpoint, folder, PRECISION, ("--step-cache=both",), threads, (), NEW_TOKENS)


def _turn(job: Job, name: str, races: Sequence[Race]) -> Turn:
    asked, result = job.folder / "transports.json", job.folder / "transports.turn.json"
    job.write(asked)
    lengths = [str(race.behind) for race in races]
    command = [sys.executable, "-m", "benchmarks.served.loop_turn", name, str(asked), str(result), *lengths]
    process.run(command, CACHE / "logs" / "transports.log", {"PYTHONPATH": str(ROOT)})
    found = json.loads(result.read_text(encoding="utf-8"))
    turn = {
        int(behind): Answer(tuple(each["tokens"]), tuple(each["times"])) for behind, each in found.items()
    }
    for answer in turn.values():
        if len(answer.tokens) != job.new_tokens:
            raise process.CommandFailedError(
                f"{name} gave {len(answer.tokens)} tokens where {job.new_tokens} were asked for"
            )
    costs = ", ".join(f"{answer.milliseconds:.1f} behind {behind}" for behind, answer in turn.items())
    sys.stderr.write(f"{name:33} {costs} (ms a token)\n")
    return turn


def _agreement(server: Sequence[Answer], others: Sequence[Answer]) -> str:
    least = min(
        decode.same_tokens(mine.tokens, other.tokens) for mine, other in zip(server, others, strict=True)
    )
    return f"{least} of {NEW_TOKENS} tokens as the server's loop"
