"""The export itself: time and peak memory of the command that a user types, against the other exporter's command."""

from __future__ import annotations

import shutil
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import checkpoints, environment, process, turns
from benchmarks.environment import CACHE, OURS
from benchmarks.results import Contestant, Result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BUILDER = "genai"
UNVERIFIED = "gptport-unverified"
PEAK_AIM = 2e9  # bytes


@dataclass(frozen=True)
class Race:
    """One checkpoint exported to one precision; `large` ones are left out of a quick run."""

    checkpoint: str
    precision: str
    large: bool = False

    @property
    def name(self) -> str:
        """As in the results."""
        return f"export-{self.checkpoint}-{self.precision}"


RACES = (
    Race("smollm2", "fp32"),
    Race("smollm2", "int4"),
    Race("llama-1b", "fp16", large=True),
    Race("llama-1b", "int4", large=True),
)


def run(race: Race, count: int, threads: int) -> Result:
    """Let both exporters take turns `count` times."""
    checkpoint = checkpoints.checkpoint(race.checkpoint)
    commands = {OURS: _gptport, UNVERIFIED: _unverified, BUILDER: _builder}
    pythons = {name: environment.python(OURS if name == UNVERIFIED else name) for name in commands}

    def turn(name: str) -> tuple[process.Finished, int]:
        command = commands[name]
        return _turn(
            name, lambda folder: [str(pythons[name]), *command(checkpoint, race.precision, folder)], threads
        )

    taken = turns.take_turns(list(commands), count, turn)
    contestants = tuple(
        Contestant(
            name,
            tuple(finished.seconds for finished, _ in found),
            max(finished.peak_bytes for finished, _ in found),
            aim=1.0 if name == BUILDER else None,
            remark=f"{statistics.median(each.processor_seconds for each, _ in found):.1f} s of processor time, "
            f"writes {found[0][1] / 1e9:.2f} GB",
        )
        for name, found in taken.items()
    )
    peak = contestants[0].peak_bytes
    return Result(
        name=race.name,
        title=f"Exporting {race.checkpoint} to {race.precision}",
        unit="seconds",
        more_is_better=False,
        contestants=contestants,
        notes=(
            f"gptport's peak is {peak / 1e9:.2f} GB; the aim, under {PEAK_AIM / 1e9:.0f} GB, is "
            f"{'reached' if peak < PEAK_AIM else 'missed'}",
            "gptport's time has its verification against torch in it; the builder has none",
            f"{UNVERIFIED} is what it does before that, where no option of the command lets it stop: "
            f"{turns.ratio(*(contestants[i].values for i in (2, 1))).median:.2f}× as fast as the builder",
        ),
    )


def _turn(name: str, command: Callable[[Path], list[str]], threads: int) -> tuple[process.Finished, int]:
    """One export into an empty folder: what it took, and the bytes that it wrote."""
    folder = CACHE / "exports" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    variables = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    finished = process.run(command(folder), CACHE / "logs" / f"{name}-export.log", variables)
    written = sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )
    shutil.rmtree(folder)
    sys.stderr.write(f"{name:12} {finished.seconds:6.1f} s, peak {finished.peak_bytes / 1e9:.2f} GB\n")
    return finished, written


def _gptport(checkpoint: Path, precision: str, folder: Path) -> list[str]:
    unlimited = ["--max-perplexity-increase", "1000%"]  # random weights have no perplexity to keep
    where = ["--repository", str(folder), "--name", "model"]
    return ["-m", "gptport", "export", str(checkpoint), "--precision", precision, *unlimited, *where]


def _unverified(checkpoint: Path, precision: str, folder: Path) -> list[str]:
    return ["-m", "benchmarks.unverified", str(checkpoint), precision, str(folder)]


def _builder(checkpoint: Path, precision: str, folder: Path) -> list[str]:
    device = (
        "cuda" if precision == "fp16" else "cpu"
    )  # it writes no fp16 for the CPU, and needs no GPU to write it
    where = ["-i", str(checkpoint), "-o", str(folder), "-c", str(folder / "cache")]
    return ["-m", "onnxruntime_genai.models.builder", *where, "-p", precision, "-e", device]
