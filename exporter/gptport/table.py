"""Tables on the terminal: columns side by side, the last one wrapped where a terminal ends; a pipe gets whole lines."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_NARROWEST = 24  # of a last column that is worth wrapping


def table(rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Rows of equally many cells, as text of at most `width` columns; None for as wide as the terminal, if it is one."""
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    columns = [max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[:-1]]
    return "\n".join(_row(row, columns, width) for row in rows)


def _row(row: Sequence[str], columns: Sequence[int], width: int | None) -> str:
    start = "".join(f"{cell:<{column}}" for cell, column in zip(row, columns, strict=False))
    left = len(row[-1]) if width is None else max(width - len(start), _NARROWEST)
    lines = textwrap.wrap(row[-1], max(left, 1), break_long_words=False, break_on_hyphens=False) or [""]
    return "\n".join(f"{start if i == 0 else ' ' * len(start)}{line}" for i, line in enumerate(lines))
