"""Ctrl-C ends the command with a line and exit code 130, also while it still imports its modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gptport import interrupts

# As a module in C does it, which makes an error of its own of any exception.
SLOW = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:
    raise ImportError("failed to import")
"""


@pytest.mark.parametrize("module", ["shlex", "numpy"])  # the command's first; the client's
def test_an_import_that_is_interrupted_is_no_traceback(tmp_path, module):
    (tmp_path / f"{module}.py").write_text(SLOW)
    with subprocess.Popen(
        [sys.executable, "-m", "gptport", "generate", "x", "--model", "x"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "gptport: interrupted\n")


@pytest.mark.usefixtures("restored")
def test_what_is_not_imported_gets_the_exception():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupts.handle()
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("restored")
def test_a_signal_that_is_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.handle()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.fixture
def restored():
    """SIGINT is handled afterwards as it was before."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
