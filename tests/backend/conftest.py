"""The tiny GPT, served by a real engine without Triton."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import tiny_gpt
from gptport_backend import answers, beams, engine, generation
from gptport_backend import manifest as manifests
from gptport_backend.chat import Chat
from gptport_backend.engine import Engine, EngineOptions
from gptport_backend.generation import Vocabulary
from gptport_backend.parameters import PARAMETERS
from gptport_backend.request import NUMPY_TYPES, parse
from gptport_backend.runner import Runner, RunnerOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gptport_backend.manifest import Manifest
    from gptport_backend.sequence import Piece


PATIENCE = 100.0  # seconds until what never comes is a failure: on a slow machine too


class NoPublisher:
    """For an engine that nobody watches."""

    def publish(self, tally):
        """Do nothing."""


class Answer:
    """A sink that remembers what came."""

    def __init__(self, request_id: str = "") -> None:
        self.request_id = request_id
        self.pieces: list[Piece] = []
        self.error = ""
        self.responses = 0
        self.cancelled = False
        self._ended = threading.Event()
        self._began = threading.Event()

    def send(self, pieces: tuple[Piece, ...], *, final: bool) -> None:
        assert not self._ended.is_set(), "something came after the end"
        self.pieces += pieces
        self.responses += 1
        self._began.set()
        if final:
            self._ended.set()

    def fail(self, message: str) -> None:
        self.error = message
        self._ended.set()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait_for_first(self) -> None:
        assert self._began.wait(PATIENCE), "no piece came"

    def wait(self) -> Answer:
        assert self._ended.wait(PATIENCE), "the request was not answered"
        return self

    def of(self, index: int) -> Answer:
        """One of several answers."""
        one = Answer()
        one.pieces = [piece for piece in self.pieces if piece.index == index]
        return one

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def finish_reason(self) -> str:
        return self.pieces[-1].finish_reason


class Served:
    """An engine with the tiny GPT; `ask` queues a request whose inputs are given as plain Python values."""

    def __init__(self, version_dir: Path, options: EngineOptions, sampler: str | None = None) -> None:
        self.manifest: Manifest = manifests.read(version_dir)
        self.tokenizer = Tokenizer.from_file(str(version_dir / "tokenizer.json"))
        runner_options = RunnerOptions(threads=1, sampler=sampler)
        self.runner = Runner(self.manifest, version_dir, runner_options, options.max_batch_size)
        self.vocabulary = Vocabulary.of(
            self.tokenizer, self.manifest.vocab_size, self.manifest.eos, Chat(version_dir)
        )
        self.engine = Engine(self.manifest, self.runner, self.vocabulary, options, NoPublisher())

    def ask(self, request_id: str = "", **inputs: Any) -> Answer:
        answer = Answer(request_id)
        self.engine.submit(parse(tensors(**inputs)), answer)
        return answer


def hold(served: Served, step: str) -> threading.Event:
    """Let the engine wait at the next `step`, a method of its runner, until the event is set."""
    run, go_on = getattr(served.runner, step), threading.Event()
    setattr(served.runner, step, lambda *arguments: go_on.wait(PATIENCE) and run(*arguments))
    return go_on


class Clock:
    """The engine's time: it stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the engine takes the time from."""
    made = Clock()
    for module in (answers, beams, engine, generation):
        monkeypatch.setattr(module, "time", made)
    return made


def tensors(**inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Input tensors as Triton would hand them over."""
    types = {parameter.name: NUMPY_TYPES[parameter.dtype] for parameter in PARAMETERS}
    result = {}
    for name, value in inputs.items():
        items = value if isinstance(value, list) else [value]
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        result[name] = np.array(encoded, types.get(name))
    return result


@pytest.fixture(scope="session")
def version_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version directory of the tiny GPT; not to be changed."""
    return tiny_gpt.write(tmp_path_factory.mktemp("repository") / "tiny" / "1")


@pytest.fixture
def serve(version_dir: Path) -> Iterator[Callable[..., Served]]:
    """Start an engine with the given options, and a `sampler`; it is closed at the end of the test."""
    started: list[Served] = []

    def start(sampler: str | None = None, **options: int) -> Served:
        started.append(Served(version_dir, EngineOptions(**options), sampler))
        return started[-1]

    yield start
    for served in started:
        served.engine.close(0)


@pytest.fixture(scope="session")
def continuation(version_dir: Path) -> Callable[[str, int], list[int]]:
    """See `continuation_of`, of the tiny GPT."""
    return continuation_of(version_dir)


def continuation_of(version_dir: Path) -> Callable[[str, int], list[int]]:
    """Greedy tokens the slow way: the whole text through the graph for every token, without a cache."""
    import onnxruntime

    manifest = manifests.read(version_dir)
    session = onnxruntime.InferenceSession(str(version_dir / manifest.graph))
    tokenizer = tiny_gpt.tokenizer()

    def generate(prompt: str, count: int) -> list[int]:
        ids = tokenizer.encode(prompt).ids
        output: list[int] = []
        while len(output) < count and tiny_gpt.EOS not in output:
            length = len(ids) + len(output)
            feed: dict[str, Any] = {
                tensor.past: np.zeros((1, tensor.heads, length, tensor.head_dim), np.float32)
                for tensor in manifest.cache.tensors
            }
            feed["input_ids"] = np.array([ids + output], np.int64)
            feed["position_ids"] = np.arange(length, dtype=np.int64)[np.newaxis]
            feed["seqlens_k"] = np.array([length - 1], np.int32)
            output.append(int(session.run(["logits"], feed)[0].argmax()))
        return output

    return generate
