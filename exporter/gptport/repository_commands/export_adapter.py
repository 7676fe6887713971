"""`gptport export-adapter`: put a LoRA adapter beside an exported model, for the requests that name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..client_commands.terminal import put
from ..trust import add_trust

if TYPE_CHECKING:
    import argparse

HELP = "Put a LoRA adapter, as PEFT saves it, beside a model that was exported with --lora."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument(
        "adapter",
        type=Path,
        metavar="ADAPTER",
        help="folder with adapter_config.json and adapter_model.safetensors",
    )
    command.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="REPOSITORY/NAME",
        help="folder of the model, for the version that it serves, or of one of its versions",
    )
    command.add_argument("--name", help="that requests give as lora_name (default: the folder's)")
    command.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="that the model was made from: compare the graph with the adapter with it, in torch",
    )
    add_trust(command)


def run(options: argparse.Namespace) -> None:
    """The command."""
    from .. import locate

    location = locate.asked_for(options) if options.checkpoint else None
    from .. import checkpoint, console
    from .. import export_adapter as adapters

    console.quiet_transformers()
    source = checkpoint.located(location, trust_remote_code=options.trust_remote_code) if location else None
    name = options.name or options.adapter.resolve().name
    with console.Steps() as steps:
        folder, parity = adapters.export(options.adapter, options.model, name, steps, source)
    put(str(folder))
    put(
        "not compared with a checkpoint; give it with --checkpoint"
        if parity is None
        else f"logits differ by at most {parity.max_abs_logit_difference:.2g} from the checkpoint with the adapter in torch, of "
        f"logits up to {parity.max_abs_logit:.3g}; the same token at {parity.greedy_agreement:.1%} of {parity.tokens} positions"
    )
