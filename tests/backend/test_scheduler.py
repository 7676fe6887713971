"""By priority, then first come, first served; decoded rows without a gap; a bounded amount of prompt a step."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from gptport_backend.scheduler import Scheduler
from gptport_backend.sequence import Sequence


def sequence(length: int) -> Sequence:
    return Sequence(prompt=(1,) * length, limit=10)


def prefill(scheduler: Scheduler[Sequence]) -> list[Sequence]:
    """Do the next prefill, as the engine would."""
    step = scheduler.next_prefill()
    if step is None:
        return []
    for item in step.sequences:
        item.computed = min(step.start + step.count, len(item.prompt))
    return list(step.sequences)


def test_prompts_that_fit_together_are_computed_together() -> None:
    scheduler: Scheduler[Sequence] = Scheduler(max_slots=8, max_prefill_tokens=32)
    first = [sequence(length) for length in (10, 8, 10)]
    later = sequence(3)
    for item in [*first, later]:
        scheduler.add(item)
    assert prefill(scheduler) == first  # a fourth would make it 4 × 10 tokens
    assert prefill(scheduler) == [later]
    assert scheduler.decoding == [*first, later]


def test_the_smallest_priority_runs_first_then_the_first_that_came() -> None:
    scheduler: Scheduler[Sequence] = Scheduler(max_slots=1, max_prefill_tokens=32)
    for priority in (0, 5, -1, 0, -1):
        scheduler.add(Sequence(prompt=(1,), limit=10, priority=priority))
    arrived = list(scheduler.waiting)
    assert [item.priority for item in arrived] == [-1, -1, 0, 0, 5]
    assert prefill(scheduler) == arrived[:1]


def test_a_long_prompt_is_computed_in_chunks_behind_those_that_are_decoded() -> None:
    scheduler: Scheduler[Sequence] = Scheduler(max_slots=8, max_prefill_tokens=32)
    short, long, behind = sequence(5), sequence(70), sequence(5)
    scheduler.add(short)
    prefill(scheduler)
    scheduler.add(long)
    scheduler.add(behind)
    computed = []
    while not long.prefilled:
        prefill(scheduler)
        computed.append(long.computed)
    assert computed == [32, 64, 70]
    assert scheduler.running == [short, long]
    assert prefill(scheduler) == [behind]


def test_no_more_run_than_there_are_slots() -> None:
    scheduler: Scheduler[Sequence] = Scheduler(max_slots=2, max_prefill_tokens=100)
    items = [sequence(1) for _ in range(3)]
    for item in items:
        scheduler.add(item)
    assert prefill(scheduler) == items[:2]
    assert prefill(scheduler) == []
    scheduler.remove(items[0])
    assert prefill(scheduler) == [items[2]]


def test_prompts_that_share_a_beginning_follow_each_other_within_a_step() -> None:
    known: dict[int, int] = {}
    scheduler: Scheduler[Sequence] = Scheduler(
        max_slots=8, max_prefill_tokens=100, reusable=lambda item: known.get(id(item), 0)
    )
    first, same, alike, too_much = sequence(40), sequence(40), sequence(45), sequence(80)
    known |= {id(same): 39, id(alike): 30, id(too_much): 30}
    for item in (first, same, alike, too_much):
        scheduler.add(item)
    spent, steps = 0, []
    while (step := scheduler.next_prefill(spent)) is not None:
        for item in step.sequences:
            item.computed = step.start + step.count
        steps.append((step.sequences, step.start, step.count))
        spent += step.cost
    assert steps == [((first,), 0, 40), ((same,), 39, 0), ((alike,), 30, 15)]
    assert spent == 40 + 32  # a run costs something, however short
    assert scheduler.decoding == [first, same, alike]
    assert prefill(scheduler) == [too_much]


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(0, 10)), max_size=40))
def test_rows_follow_the_moves_whatever_ends(events: list[tuple[int, int]]) -> None:
    """`rows` is what a cache would hold: it changes by prefills and moves only."""
    scheduler: Scheduler[Sequence] = Scheduler(max_slots=4, max_prefill_tokens=32)
    rows: dict[int, Sequence] = {}
    admitted: list[Sequence] = []
    added: list[Sequence] = []
    for length, victim in events:
        added.append(sequence(length))
        scheduler.add(added[-1])
        step = scheduler.next_prefill()
        if step is not None:
            assert step.count * len(step.sequences) <= 32
            for row, item in enumerate(step.sequences, step.first_row):
                assert rows.get(row, item) is item or step.start == 0
                rows[row] = item
                item.computed = min(step.start + step.count, len(item.prompt))
            admitted += [item for item in step.sequences if step.start == 0]
        if victim < len(scheduler.running):
            for move in scheduler.remove(scheduler.running[victim]):
                rows[move.target] = rows[move.source]
        assert [rows[row] for row in range(len(scheduler.running))] == scheduler.running
        assert all(item.prefilled for item in scheduler.decoding)
        assert len(scheduler.running) - len(scheduler.decoding) <= 1
    assert admitted == added[: len(admitted)]  # in the order of arrival


def test_it_is_plain_python() -> None:
    code = "import sys, gptport_backend.scheduler; sys.exit(bool({'numpy', 'onnxruntime', 'tokenizers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
