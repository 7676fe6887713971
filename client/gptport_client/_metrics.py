"""What the server counts and measures: the Prometheus text of Triton's metrics endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptport_client._errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)(?:\s+-?\d+)?")
_LABEL = re.compile(r'([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"')
_ESCAPES = {r"\n": "\n", r"\"": '"', r"\\": "\\"}


@dataclass(frozen=True)
class Sample:
    """One number of one metric."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All that the server counts and measures at one moment."""

    samples: tuple[Sample, ...]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the metric's samples that have these labels; 0 if there are none."""
        wanted = labels.items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())


def read_metrics(text: str) -> Metrics:
    """Read the Prometheus text format.

    Raises:
        ProtocolError: a line is not of this format.
    """
    lines = (line.strip() for line in text.splitlines())
    return Metrics(tuple(_sample(line) for line in lines if line and not line.startswith("#")))


def _sample(line: str) -> Sample:
    found = _SAMPLE.fullmatch(line)
    try:
        if found is None:
            raise ValueError
        labels = {name: _unescaped(value) for name, value in _LABEL.findall(found["labels"] or "")}
        return Sample(found["name"], labels, float(found["value"]))
    except ValueError as error:
        raise ProtocolError(f"the metrics have the line {line[:80]!r}, which is not Prometheus'") from error


def _unescaped(value: str) -> str:
    return re.sub(r"\\.", lambda found: _ESCAPES.get(found[0], found[0]), value)
