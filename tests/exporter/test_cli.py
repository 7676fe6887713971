"""What the command says, and its exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gptport import cli


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["exprot"],
        ["export"],
        ["export", "somewhere", "--max-length", "many"],
        ["export", "somewhere", "--precision", "fp8"],
        ["export", "somewhere", "--name", "a/b"],
        ["sample", "gpt5"],
        ["inspect"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    try:
        code = cli.main(arguments)
    except SystemExit as exit_:  # as argparse does
        code = exit_.code
    assert code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_traceback_is_shown_with_debug_only(gpt2, capsys):
    arguments = ["export", str(gpt2 / "config.json")]
    assert cli.main(arguments) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert cli.main([*arguments, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_installed_command_says_it_too(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "gptport", "export", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"gptport: {tmp_path} is not a checkpoint")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("module", ["gptport", "gptport.cli"])
def test_the_command_runs_as_a_module_too(module):
    done = subprocess.run(
        [sys.executable, "-m", module, "inspect", "nothing"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("gptport: nothing ")
