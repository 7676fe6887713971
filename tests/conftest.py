"""What all tests share: a test that runs the real tritonserver says so by where it stands."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent
END_TO_END, DEPLOYMENT = TESTS / "e2e", TESTS / "deployment"

LONGEST = ("test_soak.py",)  # run first: at the end, the other workers would wait for it

# Workers beside each other share the processors; a pool of threads in each makes torch take 1.6 times the processor time.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no defect: an example may take as long as it takes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A shell starts what it runs in the background with Ctrl-C ignored, and every process started from there inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/e2e, so that `-m 'not e2e'` leaves it out; and for workers, what one of them runs alone."""
    for item in items:
        if item.path.is_relative_to(END_TO_END):
            item.add_marker(pytest.mark.e2e)
        if WORKER:
            item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Not each worker is to make what a group shares: pytest-xdist has once ceased to group without a word."""
    apart = [name for name in ids if "@" not in name]
    if apart and node.config.getoption("dist") == "loadgroup":
        raise pytest.UsageError(f"pytest-xdist does not group {apart[0]}; is it made for this pytest?")


def group(item: pytest.Item) -> str:
    """The name of what takes long to make and is shared: the server of tests/e2e, the repository of tests/deployment, a file."""
    if item.path.is_relative_to(END_TO_END) and "server" in getattr(item, "fixturenames", ()):
        return "server"
    if item.path.is_relative_to(DEPLOYMENT) and "filled" in getattr(item, "fixturenames", ()):
        return "filled"
    return str(item.path.relative_to(TESTS))
