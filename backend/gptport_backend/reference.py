"""docs/generation.md, from the table of parameters: `python -m gptport_backend.reference >docs/generation.md`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gptport_backend.parameters import OUTPUTS, PARAMETERS, Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = """\
# What a text model takes and gives

Written by `make reference` from `backend/gptport_backend/parameters.py`, the one table that Triton's configuration of a model and
the checks of a request follow too. How a token is chosen, to the letter: [protocol.md](protocol.md).

Every input may be left out, but exactly one of `text_input`, `input_ids` and `messages` must be there. What is not allowed
is refused with a message that names the field, the value and what is allowed.
"""


def page() -> str:
    """The page, as Markdown."""
    inputs = [(f"`{p.name}`", p.dtype, str(p.dims), _default(p), p.allowed, p.meaning) for p in PARAMETERS]
    outputs = [(f"`{o.name}`", o.dtype, str(list(o.dims)), o.meaning) for o in OUTPUTS]
    return "\n".join(
        [
            HEAD,
            *_table(("input", "dtype", "shape", "default", "allowed", "meaning"), inputs),
            "",
            *_table(("output", "dtype", "shape", "meaning"), outputs),
            "",
        ]
    )


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ("---",) * len(heads), *rows)]


def _default(parameter: Parameter) -> str:
    value: Any = parameter.default
    if value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


if __name__ == "__main__":
    sys.stdout.write(page())
