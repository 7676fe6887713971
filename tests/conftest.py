"""What all tests share: a test that runs the real tritonserver says so by where it stands."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

END_TO_END = Path(__file__).parent / "e2e"

# A shell starts what it runs in the background with Ctrl-C ignored, and every process started from there inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark everything in tests/e2e, so that `-m 'not e2e'` leaves it out."""
    for item in items:
        if item.path.is_relative_to(END_TO_END):
            item.add_marker(pytest.mark.e2e)
