"""What is in a folder."""

from __future__ import annotations


def files_of(folder):
    """Path → content of everything below a folder, without following links to folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
