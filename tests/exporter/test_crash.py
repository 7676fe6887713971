"""A process that is killed while it publishes leaves a repository that can be served, and published to again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from gptport import versions

# Publishes a version of `model` and `model_step`, and dies without cleaning up before the n-th change to the file system.
PUBLISH = """
import os, sys
from pathlib import Path
from gptport import repository

left = int(sys.argv[2])

def dying(change):
    def changed(*arguments, **keywords):
        global left
        left -= 1
        if left == 0:
            os._exit(9)
        return change(*arguments, **keywords)
    return changed

folder = Path(sys.argv[1])
with repository.staging(folder) as staging:
    version = staging / "version"
    version.mkdir()
    (version / "manifest.json").write_text("whole")
    for name in ("mkdir", "replace", "symlink_to", "write_bytes"):
        setattr(Path, name, dying(getattr(Path, name)))
    def config(name):
        return lambda number, before: f"name: '{name}' version_policy {{ specific {{ versions: {number} }} }}".encode()

    repository.publish(folder, version, {name: config(name) for name in ("model", "model_step")}, 1, {"warmup/one": b"1"})
"""


def publish(folder, dies_before=0):
    command = [sys.executable, "-c", PUBLISH, str(folder), str(dies_before)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def assert_can_be_served(folder, *, complete):
    """Every model that is there names a version that is whole, and has its own configuration; every version is whole."""
    names = sorted(path.name for path in folder.iterdir())
    assert not complete or names == ["model", "model_step"]
    for name in names:
        number = re.match(
            rf"name: '{name}' .* versions: (\d+) ", (folder / name / "config.pbtxt").read_text()
        )[1]
        assert (folder / name / number).is_dir()
        for version in versions.versions(folder / name):
            assert (folder / name / str(version) / "manifest.json").read_text() == "whole"
            assert versions.configuration(folder / name, version).is_file()


@pytest.mark.parametrize("versions_before", [0, 2])
def test_a_crash_at_any_moment_leaves_a_repository_that_can_be_served(tmp_path, versions_before):
    start = tmp_path / "start"
    start.mkdir()
    for _ in range(versions_before):
        assert publish(start) == 0
    moment, code = 0, 9
    while code == 9:
        moment += 1
        folder = tmp_path / f"died-{moment}" / "repository"
        shutil.copytree(start, folder, symlinks=True)
        code = publish(folder, moment)
        assert_can_be_served(folder, complete=versions_before > 0)
        assert publish(folder) == 0, "the next export works"
        assert_can_be_served(folder, complete=True)
        assert len(versions.versions(folder / "model")) <= 2, "those that --keep leaves"
        assert all(not path.name.startswith(".") for path in folder.glob("*/**/*")), "nothing half done"
        assert [path.name for path in folder.parent.iterdir()] == ["repository"], (
            "what was left behind is removed"
        )
    assert code == 0
    assert moment > 5, "there were moments to die at"
