"""onnxruntime tells its maker nothing, unless the user lets it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import onnx
import pytest

from gptport import sampling_graph

if TYPE_CHECKING:
    from pathlib import Path

RUN = "import sys, time, onnxruntime; onnxruntime.InferenceSession(sys.argv[1]); time.sleep(0.5)"


@pytest.mark.parametrize("package", ["gptport", "gptport_backend"])
def test_a_session_is_not_reported(tmp_path: Path, package: str) -> None:
    graph = tmp_path / "graph.onnx"
    onnx.save(sampling_graph.model("float32"), graph)
    scratch = tmp_path / "scratch"  # where onnxruntime keeps the session's id that it reports with
    scratch.mkdir()
    # Either of these keeps it from reporting, too.
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")
    }
    subprocess.run(
        [sys.executable, "-c", f"import {package}; {RUN}", str(graph)],
        env={**inherited, "TMPDIR": str(scratch)},
        check=True,
        capture_output=True,
    )
    assert list(scratch.iterdir()) == []
