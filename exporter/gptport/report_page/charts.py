"""Charts of one figure each: what is measured upwards, on a logarithmic scale, and what it belongs to along the bottom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .numbers import number
from .svg import drawing, element

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

    from markupsafe import Markup

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 8, 30, 40


@dataclass(frozen=True)
class Axes:
    """The frame of a chart.

    Attributes:
        last: the whole number at the right end of the bottom, which begins with 0.
        ticks: upwards, ascending; the first and the last are the ends.
    """

    last: int
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, last: int, values: Sequence[float]) -> Axes:
        """Axes that hold all values; those that are 0 lie on the bottom. Ticks are 1, 2 and 5, or powers of ten, of several."""
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), max(positive)
        powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        digits = (1, 2, 5) if high / low < 50 else (1,)
        steps = [float(f"{digit}e{power}") for power in powers for digit in digits]
        first = max(i for i, step in enumerate(steps) if step <= low)
        end = min(i for i, step in enumerate(steps) if step >= high and i > first)
        every = math.ceil((end - first) / 6)
        return cls(last, tuple(steps[first : end + every : every]))

    def x(self, at: float) -> float:
        """Where a number lies along the bottom."""
        return _LEFT + 6 + at / max(self.last, 1) * (WIDTH - _LEFT - _RIGHT - 12)

    def y(self, value: float) -> float:
        """Where a value lies upwards."""
        low, high = math.log10(self.ticks[0]), math.log10(self.ticks[-1])
        level = max(math.log10(value), low) if value > 0 else low
        return HEIGHT - _BOTTOM - (level - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    def drawn(self, across: str, upwards: str) -> list[Element]:
        """Grid, ticks and names of both axes."""
        parts = [element("text", upwards, x=0, y=12, class_="name")]
        for tick in self.ticks:
            y = self.y(tick)
            parts.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(element("text", number(tick, 1), x=_LEFT - 8, y=y + 4, class_="end"))
        below = [
            element("text", str(at), x=self.x(at), y=HEIGHT - _BOTTOM + 16, class_="middle")
            for at in self._numbers()
        ]
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        return [*parts, *below, element("text", across, x=middle, y=HEIGHT - 6, class_="middle name")]

    def _numbers(self) -> list[int]:
        step = next(
            size
            for power in range(9)
            for size in (10**power, 2 * 10**power, 5 * 10**power)
            if self.last / size <= 8
        )
        return list(range(0, self.last + 1, step))


def by_position(differences: Sequence[float], width: int, allowed: float) -> Markup:
    """The largest logit difference of each position of a text that was run in rows of `width` tokens."""
    axes = Axes.around(width - 1, [*differences, allowed])
    dots = [
        element("circle", cx=axes.x(i % width), cy=axes.y(value), r=2, class_="dot")
        for i, value in enumerate(differences)
    ]
    limit = axes.y(allowed)
    line = [
        element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=limit, y2=limit, class_="limit"),
        element("text", f"allowed: {number(allowed)}", x=WIDTH - _RIGHT, y=limit - 5, class_="end name"),
    ]
    parts = [*axes.drawn("position of the token in its row", "largest difference of a logit"), *line, *dots]
    return drawing(WIDTH, HEIGHT, "The largest logit difference at each position", parts, "chart")


def by_layer(medians: Sequence[float], largest: Sequence[float]) -> Markup:
    """The relative difference of the hidden states after each layer: the median of the positions, and the largest."""
    axes = Axes.around(len(medians) - 1, [*medians, *largest])
    parts = axes.drawn("after layer", "relative difference of the hidden states")
    for values, class_ in ((largest, "line faint"), (medians, "line")):
        points = [(axes.x(i), axes.y(value)) for i, value in enumerate(values)]
        parts.append(
            element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)
        )
        if len(points) <= 40:
            parts += [element("circle", cx=x, cy=y, r=2, class_=f"{class_} point") for x, y in points]
    return drawing(WIDTH, HEIGHT, "The difference of the hidden states after each layer", parts, "chart")


def stacked(shares: Sequence[tuple[str, float]]) -> Markup:
    """A bar of parts: (CSS class, share of the whole)."""
    width, parts, x = 1000, [], 0.0
    for class_, share in shares:
        parts.append(element("rect", x=x, y=0, width=share * width, height=26, class_=class_))
        x += share * width
    title = "Size by part: " + ", ".join(f"{share:.1%}" for _, share in shares)
    return drawing(width, 26, title, parts, "bar", "none")
