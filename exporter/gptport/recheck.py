"""Compare a published version with its checkpoint again, as the export did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import locate, manifest, precision, verify
from .checkpoint import located
from .errors import VerificationError
from .reference import evaluation_text, reference

if TYPE_CHECKING:
    from pathlib import Path

    from .console import Steps


def recheck(folder: Path, checkpoint: str, steps: Steps) -> verify.Parity:
    """How close the graph in a version folder is to the checkpoint.

    Raises:
        VerificationError: it is not as close as its precision wants, or the model was made from another checkpoint.
        CheckpointError: the checkpoint cannot be read.
    """
    known = manifest.read(folder)
    location = locate.locate(checkpoint)
    source = located(location)
    with steps.step("Running the checkpoint in torch"):
        tokenizer = (folder / "tokenizer.json").read_bytes()
        expected = reference(source, tokenizer, known.max_length, evaluation_text(None))
    sha256 = location.sha256.result()
    if sha256 != known.source["sha256"]:
        raise VerificationError(
            f"{checkpoint} is not the checkpoint that {folder} was made from: its sha256 is {sha256}, "
            f"the manifest says {known.source['sha256']}"
        )
    with steps.step("Comparing the graph with it"):
        return verify.verify(folder, known, expected, precision.by_name(known.precision))
