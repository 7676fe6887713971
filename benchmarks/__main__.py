"""The command of the benchmarks: `python -m benchmarks decode --quick`."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from benchmarks import decode, export, nodes, process, profile, results, serve, transports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.results import Result

Run: TypeAlias = "Callable[[], Result | str | tuple[Result, ...]]"
AnyRace = TypeVar("AnyRace", decode.Race, export.Race, serve.Race, transports.Race)


def main() -> int:
    """Run what was asked for; the exit code."""
    options = _parser().parse_args()
    options.turns = options.turns or _default_turns(options)
    failed = 0
    for run in _COMMANDS[options.benchmark](options):
        try:
            found = run()
        except process.CommandFailedError as error:  # the others can still be measured
            sys.stderr.write(f"{error}\n")
            failed = 1
            continue
        for one in found if isinstance(found, tuple) else (found,):
            page = one if isinstance(one, str) else results.section(results.write(one, options.threads))
            sys.stdout.write(page + "\n")
            sys.stdout.flush()
    return failed


def _default_turns(options: argparse.Namespace) -> int:
    if options.quick:
        return 2
    return 3 if options.benchmark == "serve" else 5


def _decode(options: argparse.Namespace) -> Iterator[Run]:
    for race in _chosen(decode.RACES, options):
        yield partial(decode.run, race, _peers(race, options), options.turns, options.threads)


def _export(options: argparse.Namespace) -> Iterator[Run]:
    for race in _chosen(export.RACES, options):
        if not (race.large and options.quick):
            yield partial(export.run, race, options.turns, options.threads)


def _nodes(options: argparse.Namespace) -> Iterator[Run]:
    for race in _chosen(nodes.compared(), options):
        yield partial(nodes.run, race, _peers(race, options), options.threads)


def _profile(options: argparse.Namespace) -> Iterator[Run]:
    for race in _chosen(decode.RACES, options):
        yield partial(profile.write, race, options.threads, results.FOLDER)


def _serve(options: argparse.Namespace) -> Iterator[Run]:
    for race in _chosen(serve.RACES, options):
        yield partial(serve.run, race, _peers(race, options), options.turns, options.threads)


def _transports(options: argparse.Namespace) -> Iterator[Run]:
    if races := _chosen(transports.RACES, options):
        yield partial(transports.run, races, options.turns, options.threads)


def _all(options: argparse.Namespace) -> Iterator[Run]:
    for runs in (_decode, _export, _nodes, _profile):
        yield from runs(options)


def _chosen(races: Sequence[AnyRace], options: argparse.Namespace) -> list[AnyRace]:
    return [race for race in races if all(word in race.name for word in options.only)]


def _peers(race: decode.Race | serve.Race, options: argparse.Namespace) -> list[str]:
    return [name for name in race.peers if options.peer is None or name in options.peer]


_COMMANDS = {
    "decode": _decode,
    "export": _export,
    "nodes": _nodes,
    "profile": _profile,
    "serve": _serve,
    "transports": _transports,
    "all": _all,
}


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
        "--turns", type=int, metavar="N", help="of each contestant (default: 5; 3 of serve; 2 with --quick)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="that compute (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer turns and no large model")
    return parser


if __name__ == "__main__":
    sys.exit(main())
