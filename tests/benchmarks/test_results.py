"""What is written of a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from benchmarks.results import Contestant, Result, read, section, write

if TYPE_CHECKING:
    from pathlib import Path


def result(*, more_is_better: bool) -> Result:
    ours = Contestant("gptport", (20.0, 40.0), 10**9)
    peer = Contestant("peer", (10.0, 10.0), 2 * 10**9, aim=2.5)
    return Result("decode-x-fp32", "Decoding x", "tokens/s", more_is_better, (ours, peer), ("a note",))


def test_more_tokens_a_second_are_better() -> None:
    found = result(more_is_better=True)
    assert found.ratio(found.contestants[1]).median == 3.0


def test_fewer_seconds_are_better() -> None:
    found = result(more_is_better=False)
    assert found.ratio(found.contestants[1]).median == pytest.approx((0.5 + 0.25) / 2)


def test_the_table_says_whether_the_aim_was_reached() -> None:
    assert "| peer | 10 (10–10) | 3.00× (2.00–4.00) | 2.5×: reached | 2.00 GB |" in section(
        result(more_is_better=True)
    )
    assert "2.5×: missed" in section(result(more_is_better=False))


def test_a_result_is_written_and_read_back_with_its_machine(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'gptport[bench]'")
    written = write(result(more_is_better=True), threads=2, folder=tmp_path)
    assert read(tmp_path) == [written]
    assert written.threads == 2
    assert written.processor
    assert "Decoding x" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "decode.png").stat().st_size > 1000
