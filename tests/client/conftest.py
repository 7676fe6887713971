"""Fixtures: the toy server, a client of it, and a cache directory that is not the user's."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack

import pytest

from gptport_client import Client
from toy_http import serve_http
from toy_model import byte_fallback_tokenizer, byte_level_tokenizer
from toy_triton import ToyTriton


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
    toy.released.set()
    server.stop(0).wait()


@pytest.fixture
def toy_http(toy):
    """The same toy over HTTP; its address."""
    server = serve_http(toy)
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def client(toy):
    with Client(toy.url, model="toy") as client:
        yield client


@pytest.fixture
def serve(toy):
    """Run a gateway in front of the toy, for those who have one of the keys; its address."""
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    from toy_gateway import gateway

    with ExitStack() as running:
        yield lambda keys=(): running.enter_context(gateway(toy.url, keys))


@pytest.fixture
def ask(serve):
    """OpenAI's client of such a gateway."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{serve()}/v1", api_key="none", max_retries=0) as asking:
        yield asking


@pytest.fixture(scope="session")
def byte_level():
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def byte_fallback():
    return byte_fallback_tokenizer()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate of 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    files = ["-keyout", "key.pem", "-out", "cert.pem", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *files], cwd=folder, check=True, capture_output=True)
    return folder / "cert.pem", folder / "key.pem"
