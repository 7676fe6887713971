"""One picture of several results: a panel each, a bar a contestant, a whisker from its worst turn to its best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from benchmarks import turns

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.results import Result

_OURS, _PEER = "#c2410c", "#94a3b8"


def draw(results: list[Result], path: Path) -> None:
    """Write the picture of `results` to `path`, as PNG."""
    heights = [len(result.contestants) + 1.5 for result in results]
    figure = Figure(figsize=(8, 0.34 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(results), squeeze=False, height_ratios=heights)[:, 0]
    for panel, result in zip(panels, results, strict=True):
        _panel(panel, result)
    figure.savefig(path, dpi=120)


def _panel(panel: Axes, result: Result) -> None:
    spreads = [turns.spread(contestant.values) for contestant in result.contestants]
    medians = [found.median for found in spreads]
    whiskers = [[s.median - s.least for s in spreads], [s.most - s.median for s in spreads]]
    names = [contestant.name for contestant in result.contestants]
    colours = [_OURS, *[_PEER] * (len(names) - 1)]
    panel.barh(names, medians, xerr=whiskers, color=colours, height=0.7, ecolor="#334155", capsize=2)
    for place, found in enumerate(spreads):
        panel.annotate(f" {turns.shown(found.median)}", (found.most, place), va="center", fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.08)
    panel.set_title(result.title, loc="left", fontsize=9)
    panel.set_xlabel(result.unit, fontsize=8)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
