"""The entry of the command `gptport`, and of `python -m gptport`: nothing is imported before Ctrl-C is seen to."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from . import interrupts


def run() -> NoReturn:
    """Run the command. It leaves without taking torch apart first, which takes as long as half an export of a small model."""
    interrupts.handle()
    try:
        from .cli import main

        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt:
        interrupts.leave()
    os._exit(code)


if __name__ == "__main__":
    run()
