"""Shared memory of servers that were killed goes when the next one starts; that of others stays."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gptport.regions import Regions, remove_leftovers

KILLED = """
import os, signal, sys
from pathlib import Path
from gptport.regions import Regions
regions = Regions(Path(sys.argv[1]))
Path(sys.argv[1], regions.prefix + "of-a-model").write_bytes(b"x")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def of_a_killed_server(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    left = sorted(path.suffix for path in tmp_path.iterdir())
    assert left == ["", ".lock"]


@pytest.mark.usefixtures("of_a_killed_server")
def test_what_a_killed_server_left_is_removed(tmp_path):
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("of_a_killed_server")
def test_what_is_in_use_stays(tmp_path):
    regions = Regions(tmp_path)
    mine = tmp_path / f"{regions.prefix}of-a-model"
    mine.touch()
    remove_leftovers(tmp_path)
    assert {path for path in tmp_path.iterdir() if path.suffix != ".lock"} == {mine}
    regions.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_others_call_alike_stays(tmp_path):
    other = tmp_path / "gptport_1_of-somebody"
    other.touch()
    remove_leftovers(tmp_path)
    assert other.exists()
