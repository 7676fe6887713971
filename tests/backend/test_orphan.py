"""A process whose server was killed ends, and takes its shared memory with it."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from conftest import PATIENCE

CHILD = """
import mmap, sys, time
from gptport_backend import orphan
orphan.GRACE_SECONDS = 0
with open(sys.argv[1], "w+b") as file:
    file.truncate(4096)
    region = mmap.mmap(file.fileno(), 4096)
orphan.end_with_parent()
print("watching", flush=True)
time.sleep(60)
"""

SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("prefix", ["triton_gptport_backend_shm_region_", "gptport_1_test_"])
def test_the_backend_ends_with_its_server(prefix: str) -> None:
    region = Path("/dev/shm") / f"{prefix}{uuid.uuid4()}"
    arguments = [sys.executable, "-c", SERVER, CHILD, str(region)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
        assert region.exists()
        server.kill()
    deadline = time.monotonic() + PATIENCE
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.02)
    assert not region.exists()
