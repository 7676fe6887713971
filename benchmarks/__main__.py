"""The command of the benchmarks: `python -m benchmarks decode --quick`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, TypeVar

from benchmarks import decode, export, nodes, process, profile, results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Result

AnyRace = TypeVar("AnyRace", decode.Race, export.Race)


def main() -> int:
    """Run what was asked for; the exit code."""
    options = _parser().parse_args()
    turns = options.turns or (2 if options.quick else 5)
    try:
        _COMMANDS[options.benchmark](options, turns)
    except process.CommandFailedError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _decode(options: argparse.Namespace, turns: int) -> None:
    for race in _chosen(decode.RACES, options):
        peers = [name for name in race.peers if options.peer is None or name in options.peer]
        _finish(decode.run(race, peers, turns, options.threads), options)


def _export(options: argparse.Namespace, turns: int) -> None:
    for race in _chosen(export.RACES, options):
        if not (race.large and options.quick):
            _finish(export.run(race, turns, options.threads), options)


def _nodes(options: argparse.Namespace, turns: int) -> None:  # noqa: ARG001
    for race in _chosen(nodes.compared(), options):
        _finish(nodes.run(race, options.threads), options)


def _profile(options: argparse.Namespace, turns: int) -> None:  # noqa: ARG001
    tables = [profile.table(race, options.threads) for race in _chosen(decode.RACES, options)]
    path = results.FOLDER / "profile.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("# Where a decode step spends its time\n\n" + "\n".join(tables), encoding="utf-8")
    sys.stdout.write("\n".join(tables))


def _all(options: argparse.Namespace, turns: int) -> None:
    for run in (_decode, _export, _nodes, _profile):
        run(options, turns)


def _chosen(races: Sequence[AnyRace], options: argparse.Namespace) -> list[AnyRace]:
    return [race for race in races if all(word in race.name for word in options.only)]


def _finish(result: Result, options: argparse.Namespace) -> None:
    sys.stdout.write(results.section(results.write(result, options.threads)) + "\n")
    sys.stdout.flush()


_COMMANDS = {"decode": _decode, "export": _export, "nodes": _nodes, "profile": _profile, "all": _all}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure gptport against its peers."
    )
    parser.add_argument("benchmark", choices=_COMMANDS)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD",
        help="results whose name has this, and all other such words",
    )
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this peer; may be repeated")
    parser.add_argument(
        "--turns", type=int, metavar="N", help="of each contestant (default: 5; 2 with --quick)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="that compute (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns and no large model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
