"""Decoding one sequence in process: tokens a second, each contestant in turn."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import checkpoints, environment, machine, process, turns
from benchmarks.environment import CACHE, OURS, ROOT
from benchmarks.peers.job import Job
from benchmarks.results import Contestant, Result

if TYPE_CHECKING:
    from pathlib import Path

PROMPT_TOKENS, NEW_TOKENS = 32, 128


@dataclass(frozen=True)
class Race:
    """One model in one precision, and who runs it.

    Attributes:
        peers: name → how many times as fast gptport means to be; None where there is no aim.
        options: of our export, beside the precision.
    """

    checkpoint: str
    precision: str
    peers: dict[str, float | None]
    options: tuple[str, ...] = ()
    prompt_start: int = (
        1000  # of the prompt's token ids, which go up by 7: the same for all, and no text is needed
    )

    @property
    def name(self) -> str:
        """As in the results."""
        return f"decode-{self.checkpoint}-{self.variant}"

    @property
    def variant(self) -> str:
        """The precision, with the options of our export."""
        return "-".join([self.precision, *(option.strip("-").replace("=", "-") for option in self.options)])

    @property
    def prompt(self) -> tuple[int, ...]:
        """Token ids."""
        return tuple(self.prompt_start + 7 * i for i in range(PROMPT_TOKENS))


RACES = (
    Race(
        "smollm2",
        "fp32",
        {"openvino": 1.2, "genai": 1.5, "ctranslate2": None, "eager": None, "exporters": None},
    ),
    Race("smollm2", "int4", {"genai": 1.2, "llama_cpp": 1.4, "openvino": None}),
    Race("smollm2", "int4", {"genai": 1.2}, ("--head-bits=4",)),  # as onnxruntime-genai's has
    Race(
        "smollm2",
        "int4",
        {"genai": 1.2, "llama_cpp": 1.4},
        ("--quantization=gptq", "--block-size=64", "--head-bits=4"),  # loses less than either of the above
    ),
    Race("smollm2", "int8", {"genai": None, "llama_cpp": None, "ctranslate2": None, "openvino": None}),
    Race("gpt2-124m", "fp32", {"exporters": 1.5, "ctranslate2": None, "eager": None}),
    Race("gpt2-124m", "int8", {"ctranslate2": 1.3}),
)


@dataclass(frozen=True)
class Turn:
    """What one turn of one contestant gave."""

    tokens: tuple[int, ...]
    times: tuple[float, ...]
    peak_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """After the first token, whose time is the prompt's."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def run(race: Race, peers: list[str], count: int, threads: int) -> Result:
    """Prepare every contestant, then let them take turns `count` times."""
    jobs = {}
    for name in [OURS, *peers]:
        jobs[name] = job(race, name, threads)
        prepare(jobs[name], name)
    taken = turns.take_turns(list(jobs), count, lambda name: take_turn(jobs[name], name))
    rates = {name: [turn.tokens_per_second for turn in found] for name, found in taken.items()}
    reached = _bytes_read(jobs[OURS]) * turns.spread(rates[OURS]).median / machine.read_bandwidth(threads)
    return Result(
        name=race.name,
        title=f"{race.checkpoint} {race.variant}: {PROMPT_TOKENS} prompt tokens, {NEW_TOKENS} new, batch 1",
        unit="tokens/s",
        more_is_better=True,
        contestants=tuple(
            Contestant(
                name,
                tuple(rates[name]),
                max(turn.peak_bytes for turn in taken[name]),
                race.peers.get(name),
                ""
                if name == OURS
                else f"{same_tokens(taken[OURS][0].tokens, taken[name][0].tokens)} of {NEW_TOKENS} tokens as ours",
            )
            for name in jobs
        ),
        notes=(
            f"decoding reads memory at {reached:.0%} of the measured bandwidth of {threads} threads",
            f"gptport's perplexity of a text is {_perplexity_increase(jobs[OURS]):+.2%} to that of the checkpoint",
        ),
    )


def job(race: Race, peer: str, threads: int) -> Job:
    """What `peer` is asked to do in `race`."""
    folder = CACHE / "models" / peer / f"{race.checkpoint}-{race.variant if peer == OURS else race.precision}"
    checkpoint = checkpoints.checkpoint(race.checkpoint)
    return Job(checkpoint, folder, race.precision, race.options, threads, race.prompt, NEW_TOKENS)


def prepare(job: Job, peer: str) -> None:
    """Make what `peer` runs, unless it is there; anew if the peer has changed, and ours always, which is worked on."""
    done, version = _beside(job, "prepared"), environment.digest(peer)
    if peer != OURS and done.is_file() and done.read_text() == version:
        return
    sys.stderr.write(f"preparing {job.folder.relative_to(CACHE)}\n")
    done.unlink(missing_ok=True)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    _act(job, peer, "prepare")
    done.write_text(version)


def _act(job: Job, peer: str, action: str, *arguments: str) -> process.Finished:
    """Run `action` of the peer's module in a fresh process of the peer's environment."""
    path = _beside(job, "json")
    job.write(path)
    command = [
        str(environment.python(peer)),
        "-m",
        "benchmarks.peers.turn",
        peer,
        action,
        str(path),
        *arguments,
    ]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    return process.run(command, CACHE / "logs" / f"{peer}-{action}.log", variables)


def _beside(job: Job, suffix: str) -> Path:
    return job.folder.with_name(f"{job.folder.name}.{suffix}")


def take_turn(job: Job, peer: str) -> Turn:
    """Decode in a fresh process."""
    path = _beside(job, "turn.json")
    finished = _act(job, peer, "decode", str(path))
    found = json.loads(path.read_text(encoding="utf-8"))
    turn = Turn(tuple(found["tokens"]), tuple(found["times"]), finished.peak_bytes)
    if len(turn.tokens) != job.new_tokens:
        raise process.CommandFailedError(
            f"{peer} gave {len(turn.tokens)} tokens where {job.new_tokens} were asked for"
        )
    sys.stderr.write(f"{peer:12} {turn.tokens_per_second:7.1f} tokens/s\n")
    return turn


def _bytes_read(job: Job) -> int:
    from benchmarks import graph  # late: a small process measures the memory of its children

    return graph.decoded_bytes(job.folder / "model" / "1" / "model.onnx")


def _perplexity_increase(job: Job) -> float:
    found = json.loads((job.folder / "model" / "1" / "manifest.json").read_text())["verification"]
    return float(found["perplexity"] / found["checkpoint_perplexity"]) - 1


def same_tokens(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    """How many are the same before the first that differs."""
    pairs = enumerate(zip(ours, theirs, strict=True))
    return next((place for place, (mine, other) in pairs if mine != other), len(ours))
