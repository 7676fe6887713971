"""docs/commands.md is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gptport.help_pages import PAGE, page


def test_the_page_is_what_the_commands_say():
    assert PAGE.read_text() == page(), "run python -m gptport.help_pages"


@pytest.mark.parametrize("module", ["gptport", "gptport.cli"])
def test_the_command_runs_as_a_module_too(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "inspect", "nothing"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gptport: nothing ")
