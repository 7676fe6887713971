"""A wrong argument is answered before torch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

RUN = (
    "import sys; from gptport.cli import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["export", "./not-there"], 1),
        (["export", "x", "--precision", "int3"], 2),
        (["export", "x", "--name", "a/b"], 2),
        (["inspect", "./not-there"], 1),
        (["serve", "./not-there"], 1),
    ],
)
def test_torch_is_not_imported_to_say_no(arguments, code):
    result = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", str(code)]
