"""Commands in processes of their own."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from benchmarks import process

if TYPE_CHECKING:
    from pathlib import Path


def test_the_peak_is_what_the_process_held(tmp_path: Path) -> None:
    hold = "held = b'x' * 1_000_000_000; del held"
    assert 1e9 < process.run([sys.executable, "-c", hold], tmp_path / "log").peak_bytes < 1.2e9


def test_a_failure_says_what_the_command_said(tmp_path: Path) -> None:
    with pytest.raises(process.CommandFailedError, match=r"(?s)exit code 1 of .*no such peer"):
        process.run([sys.executable, "-c", "raise SystemExit('no such peer')"], tmp_path / "log")
