"""`gptport doctor`: does a model repository fit a Triton image?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..client_commands.terminal import put

if TYPE_CHECKING:
    import argparse

HELP = "Say whether a model repository fits a Triton image of NVIDIA's."


def add(command: argparse.ArgumentParser) -> None:
    """The options."""
    command.add_argument(
        "repository",
        type=Path,
        nargs="?",
        default=Path("model_repository"),
        metavar="REPOSITORY",
        help="default: %(default)s",
    )
    command.add_argument(
        "--image", metavar="TAG", help="such as 26.08-py3 (default: the newest that is known)"
    )
    command.add_argument(
        "--memory", type=float, metavar="GB", help="of the GPU, or of the machine (default: this machine's)"
    )
    command.add_argument("--compute-capability", metavar="X.Y", help="of the GPU, such as 8.0")
    command.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(options: argparse.Namespace) -> int:
    """The command; 1 if there is a problem."""
    from .. import doctor, images, table

    image = images.image(options.image)
    memory = None if options.memory is None else int(options.memory * 1e9)
    checks = doctor.examine(options.repository, image, doctor.Machine(memory, options.compute_capability))
    if options.json:
        document = {"image": asdict(image), "checks": [asdict(check) for check in checks]}
        put(json.dumps(document, indent=2))
    else:
        put(table.table([(check.model, check.what, check.status, check.why) for check in checks]))
        put("\n" + "\n".join(f"{image.tag}: {source}" for source in image.sources))
    return int(any(check.status == "problem" for check in checks))
