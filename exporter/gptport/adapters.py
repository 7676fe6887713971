"""The LoRA adapters of a version: `adapters/NAME/`, put in place at once, each with its own description beside its matrices.

The manifest of the version says where in the graph they go; it does not list them, for they come and go while it is served.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .errors import RepositoryError
from .manifest import File

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "adapters"
WEIGHTS = "adapter.onnx_adapter"
DESCRIPTION = "adapter.json"


def there(version: Path) -> list[Path]:
    """The folders of a version's adapters."""
    folder = version / FOLDER
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def described(adapter: Path) -> File:
    """Size and hash that an adapter's matrices must have.

    Raises:
        RepositoryError: its description cannot be read.
    """
    path = adapter / DESCRIPTION
    try:
        document = json.loads(path.read_bytes())
        return File(document["bytes"], document["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}; export the adapter again") from error
