"""What is computed of the times at which tokens came."""

from __future__ import annotations

import importlib

import pytest
from benchmarks import environment, serve


def turn(*streams: tuple[float, ...], **step_seconds: float) -> serve.Turn:
    return serve.Turn((streams,), step_seconds, 0)


def test_one_stream_is_counted_from_its_first_token() -> None:
    assert turn((5.0, 5.5, 6.0)).tokens_per_second == pytest.approx(2.0)


def test_many_streams_are_counted_from_the_asking_to_the_last_token() -> None:
    found = turn((1.0, 2.0), (3.0, 4.0))
    assert found.tokens_per_second == pytest.approx(4 / 4.0)
    assert found.first_token == 2.0


def test_the_loops_own_share_is_what_the_model_does_not_take() -> None:
    race = serve.Race("fp32", 2, 1.5, ("vllm",))
    ours = turn((1.0, 2.0), (1.0, 2.0), decode=0.75, prefill=0.125, sample=0.125)
    rates = serve.rates(race, {"gptport": [ours], "vllm": [turn((1.0, 4.0), (1.0, 4.0))]})
    assert rates.ratio(rates.contestants[1]).median == 2.0
    assert rates.notes == (
        "a step of the loop: decode 75.0%, prefill 12.5%, sample 12.5%",
        "the loop's own Python takes 12.5% of its steps; the aim of less than 10% is missed",
    )


def test_each_export_of_ours_is_compared_with_the_peers_of_the_same_turns() -> None:
    race = serve.Race("int8", 16, 2.5, (serve.SMOOTHQUANT, "vllm"))
    taken = {name: [turn((1.0, 2.0))] for name in ("gptport", *race.peers)}
    in_blocks, by_rows = serve.tables(race, taken)
    assert (in_blocks[0], list(in_blocks[1])) == (race, ["gptport", "vllm"])
    assert by_rows[0].name == "serve-smollm2-int8-smoothquant-16"
    assert list(by_rows[1]) == ["gptport", serve.IN_BLOCKS, "vllm"]
    assert by_rows[1]["gptport"] is taken[serve.SMOOTHQUANT]
    del taken[serve.SMOOTHQUANT]  # this CPU cannot
    assert len(list(serve.tables(race, taken))) == 1


@pytest.mark.parametrize(
    "name", sorted({peer for race in serve.RACES for peer in race.peers if " " not in peer})
)
def test_every_server_is_a_module_that_can_be_asked(name: str) -> None:
    module = importlib.import_module(f"benchmarks.served.{name}")
    assert all(callable(getattr(module, wanted)) for wanted in ("running", "ask", "step_seconds"))


def test_vllms_requirements_are_pinned() -> None:
    lines = (environment.REQUIREMENTS / "vllm.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line for line in lines if line and not line.startswith("#"))
