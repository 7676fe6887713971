"""A child that has ended is lost once its parent has not cared for it between two looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from gptport.model_processes import Lost, ModelProcesses


@pytest.fixture
def child(tmp_path):
    """A process with the arguments of one of Triton's."""
    code = tmp_path / "tiny" / "1" / "model.py"
    code.parent.mkdir(parents=True)
    code.write_text("import time; time.sleep(60)")
    started = subprocess.Popen([sys.executable, str(code)])
    yield started
    started.kill()
    started.wait()


def wait_for_end(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_who_was_killed_is_lost_at_the_second_look(child):
    processes = ModelProcesses(os.getpid())
    assert processes.lost() is None
    child.send_signal(signal.SIGKILL)
    wait_for_end(child.pid)
    assert processes.lost() is None
    assert processes.lost() == Lost("tiny", "signal 9")


def test_who_is_waited_for_between_two_looks_is_not_lost(child):
    processes = ModelProcesses(os.getpid())
    child.kill()
    wait_for_end(child.pid)
    assert processes.lost() is None
    child.wait()
    assert processes.lost() is None


def test_the_exit_code_of_one_that_was_never_seen_alive():
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    wait_for_end(child.pid)
    processes = ModelProcesses(os.getpid())
    processes.lost()
    assert processes.lost() == Lost("", "exit code 3")
    child.wait()
