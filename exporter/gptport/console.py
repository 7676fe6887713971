"""What the user sees of long work: a line for each step, with a bar where its size is known, on standard error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Size(ProgressColumn):
    """Bytes done, for a step of known size."""

    def render(self, task: Task) -> Text:
        """The column of one step."""
        if not task.fields["bytes"]:
            return Text("")
        return Text(decimal(int(task.completed)))


class Steps:
    """Shows the steps of a job, each with the time it took. Steps may run at the same time.

    Use it as a context manager around the job.
    """

    def __init__(self) -> None:
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description:<32}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            _Size(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True, highlight=False))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A step.

        Args:
            name: what is done, such as `Writing the weights`.
            total: its size in bytes, if it is known.

        Yields:
            a function to call with the number of bytes just done.
        """
        task = self._progress.add_task(name, total=total, bytes=total is not None)
        yield lambda done: self._progress.advance(task, done)
        self._progress.update(task, total=total or 1, completed=total or 1)


def quiet_transformers() -> None:
    """Silence the progress bars and reports that transformers writes into ours."""
    import functools

    from tqdm.auto import tqdm
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    modeling_gguf_pytorch_utils.tqdm = functools.partial(tqdm, disable=True)  # type: ignore[attr-defined]
