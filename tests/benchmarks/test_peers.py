"""The peers: what is asked of them, and what can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks import decode, environment
from benchmarks.peers import job as jobs

NAMES = sorted({name for race in decode.RACES for name in race.peers})


@pytest.mark.parametrize("name", NAMES)
def test_every_peer_is_a_module_with_pinned_requirements(name: str) -> None:
    assert (environment.REQUIREMENTS / f"{name}.py").is_file()
    lines = (environment.REQUIREMENTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))


def test_a_job_is_read_as_it_was_written(tmp_path: Path) -> None:
    job = jobs.Job(Path("checkpoint"), Path("folder"), "int4", ("--head-bits=4",), 2, (1, 2, 3), 4)
    job.write(tmp_path / "job.json")
    assert jobs.read(tmp_path / "job.json") == job


def test_the_first_token_is_the_prompts_and_not_counted() -> None:
    """Three tokens after the first, a tenth of a second each."""
    turn = decode.Turn((5, 5, 5, 5), (1.0, 1.1, 1.2, 1.3), 0)
    assert turn.tokens_per_second == pytest.approx(10.0)
