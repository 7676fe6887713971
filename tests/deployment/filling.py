"""Fills a model repository as the service `export` does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def fill(repository: Path, sample: str = "gpt2-tiny") -> str:
    """Run the script of the service `export`; what it said."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": path, "GPTPORT_REPOSITORY": str(repository), "HOME": str(repository.parent)}
    script = ROOT / "docker/fill-repository.sh"
    ran = subprocess.run(
        ["/bin/sh", script, sample], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
