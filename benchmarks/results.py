"""The results: one JSON file each, and of all of them a Markdown page and a plot a kind."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from benchmarks import environment, machine, turns

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = environment.ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Contestant:
    """What one contestant reached.

    Attributes:
        values: one a turn, in the order of the turns.
        peak_bytes: most memory that a turn held.
        aim: how many times as good gptport means to be; None where there is no aim.
        remark: in the table.
    """

    name: str
    values: tuple[float, ...]
    peak_bytes: int
    aim: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Result:
    """Measured side by side, first what the others are compared with. `kind` and the rest of `name` are parted by a hyphen."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    contestants: tuple[Contestant, ...]
    notes: tuple[str, ...] = ()
    threads: int = 0
    processor: str = ""
    date: str = ""

    @property
    def kind(self) -> str:
        """The benchmark that this came from."""
        return self.name.partition("-")[0]

    def ratio(self, peer: Contestant) -> turns.Spread:
        """How many times as good as `peer` the first is, whichever direction is good."""
        ours, theirs = self.contestants[0].values, peer.values
        return turns.ratio(ours, theirs) if self.more_is_better else turns.ratio(theirs, ours)


def write(result: Result, threads: int, folder: Path = FOLDER) -> Result:
    """Write the result with the machine it is from, and the page and the plots anew; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    stamped = replace(result, threads=threads, processor=machine.processor(), date=today)
    (folder / f"{result.name}.json").write_text(
        json.dumps(asdict(stamped), indent=1) + "\n", encoding="utf-8"
    )
    everything = read(folder)
    (folder / "README.md").write_text(page(everything), encoding="utf-8")
    from benchmarks import plot

    same = [other for other in everything if other.kind == result.kind]
    plot.draw(same, folder / f"{result.kind}.png")
    return stamped


def read(folder: Path = FOLDER) -> list[Result]:
    """All results in `folder`, by name."""
    items = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [
        Result(
            **item
            | {
                "contestants": tuple(
                    Contestant(**c | {"values": tuple(c["values"])}) for c in item["contestants"]
                )
            }
            | {"notes": tuple(item["notes"])}
        )
        for item in items
    ]


def page(results: list[Result]) -> str:
    """The Markdown page."""
    written = "Written by `make bench-export`, `make bench-serve` and `make bench-transports`"
    head = f"# Results\n\n{written}; [../README.md](../README.md) says what the numbers mean.\n"
    return "\n".join([head, *(section(result) for result in results)])


def section(result: Result) -> str:
    """The part of the page about `result`."""
    where = f"{result.processor}, {result.threads} threads, {len(result.contestants[0].values)} turns, {result.date}"
    table = [
        f"| | {result.unit} | {result.contestants[0].name} is better by | aim | peak memory | |",
        "|---|---|---|---|---|---|",
        *(_row(result, contestant) for contestant in result.contestants),
    ]
    notes = [f"- {note}" for note in result.notes]
    return "\n".join([f"## {result.title}", "", where, "", *table, "", *notes, *([""] if notes else [])])


def _row(result: Result, contestant: Contestant) -> str:
    better, aim = "", ""
    if contestant is not result.contestants[0]:
        ratio = result.ratio(contestant)
        better = f"{ratio.median:.2f}× ({ratio.least:.2f}–{ratio.most:.2f})"
        aim = "" if contestant.aim is None else f"{contestant.aim}×: {_verdict(ratio.median, contestant.aim)}"
    memory = f"{contestant.peak_bytes / 1e9:.2f} GB" if contestant.peak_bytes else ""
    values = str(turns.spread(contestant.values))
    return f"| {contestant.name} | {values} | {better} | {aim} | {memory} | {contestant.remark} |"


def _verdict(ratio: float, aim: float) -> str:
    return "reached" if ratio >= aim else "missed"
