"""Tables on the terminal."""

from __future__ import annotations

from gptport.table import table

ROWS = [("name", "ok", "what it is, at some length, in words"), ("longer name", "problem", "-")]


def test_a_pipe_gets_a_line_a_row():
    assert table(ROWS).splitlines() == [
        "name         ok       what it is, at some length, in words",
        "longer name  problem  -",
    ]


def test_a_terminal_gets_the_last_column_wrapped_below_itself():
    lines = table(ROWS, 50).splitlines()
    assert lines == [
        "name         ok       what it is, at some length,",
        "                      in words",
        "longer name  problem  -",
    ]


def test_paths_and_names_stay_whole_however_narrow_it_is():
    path = "/a/folder/with-a-name/that-is-long/1"
    assert table([("report", path)], 10).splitlines() == [f"report  {path}"]
