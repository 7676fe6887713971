"""What docs/architectures.md calls exact is exported exactly; what it calls refused is refused."""

from __future__ import annotations

import pytest

from architectures import NAMES, TABLE, row

STATED = {
    cells[1].strip(): [cell.strip() for cell in cells[2:4]]
    for cells in (line.split("|") for line in TABLE.read_text().splitlines())
    if len(cells) > 3
}
REWRITTEN = {
    "persimmon": "Gather, Split, Squeeze",  # its norms lie between the projection and attention
    "granite": "FusedMatMul, MatMul, Mul",  # what a layer adds is multiplied by a number
}


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_true(name, tmp_path, gpt2):
    status, details = (cell.strip() for cell in row(name, tmp_path, gpt2).split("|")[2:4])
    assert status == STATED[name][0]
    assert details.partition("onnxruntime still rewrites ")[2].partition(")")[0] == REWRITTEN.get(name, "")
