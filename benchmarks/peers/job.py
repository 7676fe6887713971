"""What a peer is asked to do. Runs in every peer's environment: the standard library only."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

Emit = Callable[[int], object]
Generate = Callable[[int, Emit], None]


@dataclass(frozen=True)
class Job:
    """A checkpoint to prepare and to decode with.

    Attributes:
        checkpoint: Hugging Face directory, float32.
        folder: where the peer keeps what it makes of the checkpoint.
        precision: fp32, int8 or int4.
        options: of `gptport export`, for gptport.
        threads: that compute.
        prompt: token ids.
        new_tokens: to generate, one after the other.
    """

    checkpoint: Path
    folder: Path
    precision: str
    options: tuple[str, ...]
    threads: int
    prompt: tuple[int, ...]
    new_tokens: int

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer together."""
        return len(self.prompt) + self.new_tokens

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")


def read(path: Path) -> Job:
    """The job that `Job.write` wrote."""
    item = json.loads(path.read_text(encoding="utf-8"))
    return Job(
        **item
        | {"checkpoint": Path(item["checkpoint"]), "folder": Path(item["folder"])}
        | {"prompt": tuple(item["prompt"]), "options": tuple(item["options"])}
    )
