"""docs/generation.md and docs/metrics.md, from their tables: `python -m gptport_backend.reference FOLDER` writes both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptport_backend.metrics import BOUNDS, METRICS
from gptport_backend.outputs import OUTPUTS
from gptport_backend.parameters import PARAMETERS, Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

HEAD = """\
# What a text model takes and gives

Written by `make reference` from `backend/gptport_backend/parameters.py`, the one table that Triton's configuration of a model and
the checks of a request follow too. How a token is chosen, to the letter: [protocol.md](protocol.md).

Every input may be left out, but exactly one of `text_input`, `input_ids` and `messages` must be there. What is not allowed
is refused with a message that names the field, the value and what is allowed.
"""


METRICS_HEAD = """\
# What a text model counts

Written by `make reference` from `backend/gptport_backend/metrics.py`. All of it is on Triton's own metrics endpoint (port 8002),
each with the label `model`, and one more where the table names it; `docker/grafana/dashboards/gptport.json` shows it.
A request that is refused when it arrives is in none of these counts. While it works, the engine shows them twice a second.
Instances of one model add to the same counters; a gauge shows what one of them wrote last.

What runs and waits is counted in sequences: a request has one, with `n` one for each answer, and with `beam_width` one for
each beam that runs.
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    rows = [(f"`{m.name}`", m.kind, f"`{m.label}`" if m.label else "", m.meaning) for m in METRICS]
    bounds = ", ".join(f"{bound:g}" for bound in BOUNDS)
    histograms = (
        f"A histogram is `NAME_bucket`, `NAME_count` and `NAME_sum`; its buckets end at {bounds} seconds."
    )
    return "\n".join(
        [METRICS_HEAD, *_table(("metric", "kind", "label", "meaning"), rows), "", histograms, ""]
    )


def generation_page() -> str:
    """docs/generation.md."""
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
    (folder,) = map(Path, sys.argv[1:])
    (folder / "generation.md").write_text(generation_page(), encoding="utf-8")
    (folder / "metrics.md").write_text(metrics_page(), encoding="utf-8")
