"""Compare a published version with its checkpoint again, as the export did."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import growing, manifest, precision, processor, verify
from .errors import VerificationError
from .reference import evaluation_text, reference

if TYPE_CHECKING:
    from pathlib import Path

    from .checkpoint import Checkpoint
    from .console import Steps
    from .manifest import Manifest
    from .precision import Precision

_SLACK = 0.001  # of the perplexity: another processor rounds otherwise


def recheck(
    folder: Path, checkpoint: Checkpoint, steps: Steps, evaluation: Path | None = None
) -> verify.Parity:
    """How close the graph in a version folder is to the checkpoint.

    Args:
        folder: of the version.
        checkpoint: what it was made from; of a graph that was packaged, one with the same shape.
        steps: shows what is done.
        evaluation: the text that the export was compared on; None for ours.

    Raises:
        VerificationError: this CPU cannot run it, it is not as close as its precision wants, or the model was made from another
            checkpoint.
    """
    known = manifest.read(folder)
    if lacking := processor.missing(known.cpu_flags):
        raise VerificationError(f"{folder}: {lacking}")
    text = evaluation_text(evaluation)
    if known.source["format"] == "onnx":
        _check_shape(folder, known, checkpoint)
    else:
        check_source(folder, known, checkpoint)
    with steps.step("Running the checkpoint in torch"):
        tokenizer = (folder / "tokenizer.json").read_bytes()
        expected = reference(checkpoint, tokenizer, known.max_length, text)
    with steps.step("Comparing the graph with it"):
        compare = growing.compare if known.kv_cache.grows else verify.verify
        return compare(folder, known, expected, allowed(known), advice="")


def _check_shape(folder: Path, known: Manifest, checkpoint: Checkpoint) -> None:
    """VerificationError unless a graph that another exporter wrote has the checkpoint's shape: its hash, nobody knows."""
    spec, cache = checkpoint.spec, known.kv_cache
    for what, has, wanted in (
        ("layers", cache.layers, spec.layers),
        ("key and value heads", cache.kv_heads, spec.kv_heads),
        ("numbers in a head", cache.head_dim, spec.head_dim),
        ("tokens in its vocabulary", known.vocab_size, spec.vocab_size),
    ):
        if has != wanted:
            raise VerificationError(
                f"{checkpoint.directory} is not the checkpoint that {folder} was made from: it has {wanted} {what}, "
                f"the graph {has}"
            )


def check_source(folder: Path, known: Manifest, checkpoint: Checkpoint) -> None:
    """VerificationError unless a version was made from this checkpoint."""
    sha256 = checkpoint.sha256.result()
    if sha256 != known.source["sha256"]:
        raise VerificationError(
            f"{checkpoint.directory} is not the checkpoint that {folder} was made from: its sha256 is {sha256}, "
            f"the manifest says {known.source['sha256']}"
        )


def allowed(known: Manifest) -> Precision:
    """What the precision allows, or what this export was allowed: it may have been more."""
    usual = precision.by_name(known.precision)
    then = known.verification["perplexity"] / known.verification["checkpoint_perplexity"] - 1
    return replace(usual, max_perplexity_increase=max(usual.max_perplexity_increase, then + _SLACK))
