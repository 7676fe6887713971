"""`gptport verify`: is an exported model still what was written, and, with the checkpoint, still as exact?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..client_commands.terminal import put
from ..trust import add_trust

if TYPE_CHECKING:
    import argparse

HELP = "Check the files of an exported model against its manifest and, with the checkpoint, its logits."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument(
        "model",
        type=Path,
        metavar="REPOSITORY/NAME",
        help="folder of a model, for the version that it serves, or of one of its versions",
    )
    command.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="compare the graph with it in torch, as an export does; a packaged one too",
    )
    command.add_argument(
        "--evaluation-text",
        type=Path,
        metavar="FILE",
        help="that the export was compared on, if it was one of yours",
    )
    add_trust(command)


def run(options: argparse.Namespace) -> int:
    """The command; 1 if something has changed."""
    from .. import adapters, integrity, manifest

    folder = manifest.version_folder(options.model)
    known = manifest.read(folder)
    damage = integrity.damage(folder, known)
    if damage:
        put("\n".join(damage))
        return 1
    beside = ", ".join(adapter.name for adapter in adapters.there(folder))
    put(
        f"{folder}: {len(known.files)} files are as they were written{beside and f', so are the adapters: {beside}'}"
    )
    if options.checkpoint is not None:
        _compare(folder, options)
    return 0


def _compare(folder: Path, options: argparse.Namespace) -> None:
    from .. import locate

    location = locate.asked_for(options)
    from .. import checkpoint, console, recheck

    console.quiet_transformers()
    source = checkpoint.located(location, trust_remote_code=options.trust_remote_code)
    with console.Steps() as steps:
        parity = recheck.recheck(folder, source, steps, options.evaluation_text)
    put(
        f"logits differ by at most {parity.max_abs_logit_difference:.2g}, of logits up to {parity.max_abs_logit:.3g}; "
        f"the same token at {parity.greedy_agreement:.1%} of {parity.tokens} positions; "
        f"perplexity {parity.perplexity:.4g}, of the checkpoint {parity.checkpoint_perplexity:.4g}"
    )
