"""What docs/architectures.md calls exact is exported exactly; what it calls refused is refused."""

from __future__ import annotations

import pytest

from architectures import NAMES, TABLE, row

STATED = {
    cells[1].strip(): cells[2].strip()
    for cells in (line.split("|") for line in TABLE.read_text().splitlines())
    if len(cells) > 3
}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_true(name, tmp_path, gpt2):
    assert row(name, tmp_path, gpt2).split("|")[2].strip() == STATED[name]
