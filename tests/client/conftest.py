"""Fixtures: the toy server, a client of it, and a cache directory that is not the user's."""

from __future__ import annotations

import pytest

from gptport_client import Client
from toy_triton import ToyTriton, byte_fallback_tokenizer, byte_level_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The directory in which tokenizers are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gptport" / "tokenizers"


@pytest.fixture
def toy():
    """A running toy server; `toy.url` is where."""
    toy = ToyTriton()
    server, port = toy.serve()
    toy.url, toy.server = f"127.0.0.1:{port}", server
    yield toy
    server.stop(0).wait()


@pytest.fixture
def client(toy):
    with Client(toy.url, model="toy") as client:
        yield client


@pytest.fixture(scope="session")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def byte_fallback():
    return byte_fallback_tokenizer()
