"""What tritonserver's log says of what went wrong, in a line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ERROR = re.compile(r"(E\d{4} .*?\] |error: |  what\(\):  )(?P<text>.*)|.*: (unrecognized )?option '")
_EVERYWHERE = '"CudaDriverHelper has not been initialized."'  # without a GPU, each server logs it as an error


def last_error(log: Path | None, about: str = "") -> str:
    """The last error that has the text `about`; empty without one, or without a log."""
    if log is None:
        return ""
    lines = log.read_text(errors="replace").splitlines()
    found = [match["text"] or line for line in lines if (match := _ERROR.match(line)) and about in line]
    return next((text for text in reversed(found) if text != _EVERYWHERE), "")
