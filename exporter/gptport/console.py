"""What the user sees of long work: a line or a bar for each step, on standard error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Steps:
    """Shows the steps of a job, each with the seconds it took; steps of a known size get a bar."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A step.

        Args:
            name: what is done, such as `Writing the weights`.
            total: its size in bytes, if it is known.

        Yields:
            a function to call with the number of bytes just done.
        """
        columns = [BarColumn(), DownloadColumn()] if total is not None else []
        spinner = SpinnerColumn(finished_text="✓")
        with Progress(
            spinner,
            TextColumn("{task.description:<32}"),
            *columns,
            TimeElapsedColumn(),
            console=self._console,
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda done: progress.advance(task, done)
            progress.update(task, total=total or 1, completed=total or 1)
