"""The help of every command as one page; `python -m gptport.help_pages` writes docs/commands.md."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from unittest.mock import patch

from .arguments import parser

PAGE = Path(__file__).parents[2] / "docs" / "commands.md"


def page() -> str:
    """The page, in Markdown."""
    with patch.dict(os.environ, {"COLUMNS": "100"}):  # argparse wraps lines there
        top = parser()
        parts = [_section("gptport", top)]
        for action in top._actions:
            if isinstance(action, argparse._SubParsersAction):
                parts += [_section(f"gptport {name}", command) for name, command in action.choices.items()]
    return "# The commands\n\n`python -m gptport.help_pages` writes this page.\n\n" + "\n".join(parts)


def _section(name: str, command: argparse.ArgumentParser) -> str:
    return f"## {name}\n\n```\n{command.format_help()}```\n"


if __name__ == "__main__":
    PAGE.write_text(page())
