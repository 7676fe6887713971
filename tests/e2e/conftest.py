"""The real way: samples, exported by the command, on one running tritonserver; and what transformers makes of the same prompts.

Samples, exports and references are kept in .cache/e2e, by a hash of what made them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gptport.server import running
from gptport_client import Client
from in_torch import MODELS, NEW_TOKENS, PROMPTS, generate
from serve_command import PATIENCE, Command

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "e2e"


HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow for the first test's setup, which fetches, exports and generates in torch; on a busy machine that takes minutes."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.timeout(1800))


def digest(*paths: Path) -> str:
    """Of the content of files, and of the Python files in folders."""
    found = hashlib.sha256(sys.version.encode())
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def made_once(target: Path, *command: str) -> Path:
    """`target`, which the command of gptport writes where {} stands, if it is not there yet."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(target):
        return target if target.exists() else make(target, command)


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Let nobody else make the same meanwhile: another process of the tests waits and finds it made."""
    with target.with_name(f".{target.name.rpartition('-')[0]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make(target: Path, command: Sequence[str]) -> Path:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "made"
        arguments = [part.replace("{}", str(made)) for part in command]
        ran = subprocess.run(
            [sys.executable, "-m", "gptport", *arguments], stderr=subprocess.PIPE, check=False
        )
        assert ran.returncode == 0, f"gptport {' '.join(arguments)}: {ran.stderr.decode()}"
        made.rename(target)
    for older in target.parent.glob(f"{target.name.rpartition('-')[0]}-*"):
        if older != target:
            shutil.rmtree(older)
    return target


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Path]:
    """Model → its checkpoint, a Hugging Face directory."""
    version = digest(ROOT / "exporter/gptport/samples.py", ROOT / "constraints.txt")
    return {name: made_once(CACHE / f"{name}-{version}", "sample", name, "-o", "{}") for name in MODELS}


@pytest.fixture(scope="session")
def repository(checkpoints, tmp_path_factory) -> Path:
    """A model repository with both models and their step models."""
    version = digest(ROOT / "exporter", ROOT / "constraints.txt")
    together = tmp_path_factory.mktemp("repository")
    for name, checkpoint in checkpoints.items():
        command = ["export", str(checkpoint), "--repository", "{}", "--name", name]
        exported = made_once(CACHE / f"repository-{name}-{version}", *command)
        for model in exported.iterdir():
            (together / model.name).symlink_to(model)
    return together


@pytest.fixture(scope="session")
def server(repository):
    """A running server with both models."""
    with running(repository) as server:
        yield server


@pytest.fixture
def command(tmp_path):
    started = []

    def start(*arguments, **options):
        started.append(Command(tmp_path, *arguments, **options))
        return started[-1]

    yield start
    for item in started:
        item.process.kill()
        item.process.communicate()


@pytest.fixture
def client(server):
    """Connects to one of the models of the server."""
    opened = []

    def connect(model: str = "smollm2") -> Client:
        opened.append(Client(server.address.grpc_url, model=model))
        return opened[-1]

    yield connect
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def reference(checkpoints):
    """Greedy tokens of transformers: model → prompt → ids, an end-of-text token included."""
    return {name: references(name, checkpoint) for name, checkpoint in checkpoints.items()}


def references(name: str, checkpoint: Path) -> dict[str, list[int]]:
    key = json.dumps([checkpoint.name, PROMPTS, NEW_TOKENS, digest(ROOT / "constraints.txt")])
    file = CACHE / f"reference-{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with one_at_a_time(file):
        if not file.exists():
            partly = file.with_suffix(f".{os.getpid()}")
            partly.write_text(json.dumps(generate(checkpoint)))
            partly.replace(file)
    return json.loads(file.read_text())


@pytest.fixture
def gauge(server):
    """The present value of one of the backend's metrics, from the endpoint; of a counter, for one finish reason."""

    def read(name: str, model: str = "smollm2", reason: str = "") -> float:
        with urllib.request.urlopen(server.address.metrics_url, timeout=PATIENCE) as answer:
            text = answer.read().decode()
        values = re.findall(rf"^gptport_{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
        labels = [f'model="{model}"', *([f'finish_reason="{reason}"'] if reason else [])]
        return sum(float(value) for those, value in values if all(label in those for label in labels))

    return read


@pytest.fixture
def becomes():
    """Wait until a function returns a value."""

    def wait(value, function, *arguments, seconds: float = PATIENCE) -> None:
        end = time.monotonic() + seconds
        while (now := function(*arguments)) != value and time.monotonic() < end:
            time.sleep(0.05)
        assert now == value

    return wait
