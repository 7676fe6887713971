"""`gptport export`, killed at random moments: what is served stays whole, and the next export cleans up.

`make kill-exports` kills 30; the tests 5. test_crash.py has every moment of the publishing itself.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import onnxruntime
import pytest

from gptport import versions
from gptport_backend import manifest as manifests

KILLS = int(os.environ.get("KILLS", "5"))
SEED = int(os.environ.get("SEED", "1"))
MODELS = ("gpt2", "gpt2_step")


class Export:
    """A `gptport export` that runs."""

    def __init__(self, checkpoint, repository):
        command = [
            "export",
            str(checkpoint),
            "--repository",
            str(repository),
            "--max-length",
            "64",
            "--keep",
            "2",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gptport", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        before = staged(repository)
        while self._process.poll() is None and staged(repository) <= before:
            time.sleep(0.002)
        self._began = time.monotonic()

    def finish(self):
        """Seconds from the first file that it wrote to its end."""
        said, _ = self._process.communicate()
        assert self._process.returncode == 0, said.decode()
        return time.monotonic() - self._began

    def kill_after(self, seconds):
        """Whether it was still running."""
        time.sleep(max(0.0, self._began + seconds - time.monotonic()))
        self._process.kill()
        self._process.communicate()
        return self._process.returncode != 0


def staged(repository):
    """The folders, beside a repository, that exports write to."""
    return {path for path in repository.parent.iterdir() if path != repository}


def assert_it_can_be_served(repository):
    """As the backend loads a model: the version that is named, its files' hashes, and the graph in onnxruntime."""
    for name in MODELS:
        model = repository / name
        folder = model / str(versions.served(model))
        manifests.verify_files(manifests.read(folder), folder)
        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level = 3
        onnxruntime.InferenceSession(folder / "model.onnx", quiet, providers=["CPUExecutionProvider"])


@pytest.mark.timeout(60 + 120 * KILLS)
def test_an_export_that_is_killed_leaves_what_was_there(gpt2, tmp_path):
    repository = tmp_path / "models" / "repository"
    repository.mkdir(parents=True)
    lasts = Export(gpt2, repository).finish()
    moments, killed, started = random.Random(SEED), 0, 0
    while killed < KILLS:
        started += 1
        assert started <= 3 * KILLS, "too many ended before they were killed"
        seconds = moments.uniform(0, lasts)
        running = Export(gpt2, repository).kill_after(seconds)
        killed += running
        if not running:
            lasts = (lasts + seconds) / 2
        what, now = "killed" if running else "it had ended", versions.served(repository / "gpt2")
        sys.stdout.write(
            f"{what} {seconds:.3f} s after its first file (seed {SEED}, number {started}); serves {now}\n"
        )
        assert_it_can_be_served(repository)
    Export(gpt2, repository).finish()
    assert_it_can_be_served(repository)
    assert staged(repository) == set()
    assert not [path.name for path in repository.glob("**/.*")]
    assert len(versions.versions(repository / "gpt2")) <= 3
