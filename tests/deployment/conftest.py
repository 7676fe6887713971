"""What the tests of the deployment share: its files, one exported model, and servers as the containers run them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from filling import ROOT, fill

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT


@pytest.fixture(scope="session")
def filled(tmp_path_factory) -> Path:
    """A model repository that was empty, as the service `export` fills it, with a sample that needs no network."""
    repository = tmp_path_factory.mktemp("filled")
    (repository / "README.md").touch()  # git keeps an empty folder by it
    fill(repository)
    return repository


@pytest.fixture(scope="session")
def needs():
    """Skip the test if a program is missing that comes from a package of Debian."""

    def check(program: str) -> str:
        found = shutil.which(program, path="/usr/local/bin:/usr/bin:/usr/sbin")
        if found is None:
            pytest.skip(f"there is no {program}; make deployment installs it")
        return found

    return check
