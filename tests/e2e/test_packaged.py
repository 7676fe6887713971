"""Directories that other exporters wrote, packaged by the command, on the real Triton; see tests/exporter/foreign/make.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from gptport.cli import main
from gptport.console import Steps
from gptport.samples import sample
from gptport.server import running
from gptport_client import Client, InvalidRequest, ModelNotFound
from gptport_client._tokenizer import read_tokenizer
from graph_edits import edited, keep_logits

FOREIGN = Path(__file__).parents[1] / "exporter" / "foreign"
PROMPT = "Alice was beginning to get very tired"


GROWING = ("optimum-llama", "optimum-merged")


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Name → directory with a graph and a tokenizer."""
    together = tmp_path_factory.mktemp("foreign")
    tokenizer = sample("gpt2-tiny", together / "tokenizer", Steps()) / "tokenizer.json"
    found = {}
    for name in ("genai-fp32", "genai-int4", *GROWING):
        found[name] = shutil.copytree(FOREIGN / name, together / name)
        shutil.copy(tokenizer, found[name])
    edited(found["optimum-llama"], keep_logits)
    return found


@pytest.fixture(scope="module")
def packaged(directories, tmp_path_factory):
    """A server of all of them."""
    repository = tmp_path_factory.mktemp("repository")
    for name, directory in directories.items():
        options = [
            "--repository",
            str(repository),
            "--step-cache",
            "client" * (name == "genai-int4") or "server",
        ]
        assert main(["package", str(directory), *options]) == 0
    with running(repository) as server:
        yield server


@pytest.fixture(scope="module")
def computed(directories):
    """Name → the logits [vocab] behind some ids, by onnxruntime, without a cache."""

    def of(name: str):
        (path,) = directories[name].glob("*.onnx")
        session = onnxruntime.InferenceSession(path)
        shapes = {each.name: each.shape for each in session.get_inputs()}

        def logits(ids):
            one = {
                "input_ids": np.array([ids]),
                "attention_mask": np.ones((1, len(ids)), np.int64),
                "position_ids": np.arange(len(ids))[None],
                "use_cache_branch": np.array([False]),
                "num_logits_to_keep": np.array(0),
            }
            past = {
                name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
                for name, shape in shapes.items()
                if name not in one
            }
            feeds = past | {name: value for name, value in one.items() if name in shapes}
            return session.run(["logits"], feeds)[0][0, -1]

        return logits

    return of


def drawn(logits, temperature: float, u: float) -> int:
    """docs/protocol.md, "Sampling, exactly", without restrictions."""
    order = np.argsort(-logits, kind="stable")
    if temperature == 0:
        return int(order[0])
    weights = np.exp((logits[order] / np.float32(temperature)).astype(np.float64))
    cumulative = np.cumsum(weights / weights.sum())
    return int(order[np.argmax(cumulative > u * cumulative[-1])])


@pytest.mark.parametrize("name", ["genai-fp32", "genai-int4"])
@pytest.mark.parametrize("params", [{"temperature": 0}, {"temperature": 1.0, "seed": 3}])
def test_both_loops_generate_the_same_from_a_packaged_graph(packaged, name, params):
    with Client(packaged.address.grpc_url, model=name) as client:
        answers = [
            client.generate(PROMPT, max_tokens=24, ignore_eos=True, loop=loop, **params)
            for loop in ("server", "client")
        ]
    assert len(answers[0].token_ids) == 24
    assert answers[0].token_ids == answers[1].token_ids


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_graph_whose_cache_grows_generates_what_onnxruntime_gives(
    packaged, directories, computed, name, temperature
):
    with Client(packaged.address.grpc_url, model=name, tokenizer=directories[name]) as client:
        options = {"temperature": temperature, "seed": 3, "max_tokens": 16, "ignore_eos": True}
        answer = client.generate(PROMPT, loop="client", **options)
        ids = list(read_tokenizer(directories[name]).encode(PROMPT))
    logits, random, new = computed(name), np.random.Generator(np.random.Philox(key=3)), []
    for _ in range(16):
        new.append(drawn(logits([*ids, *new]), temperature, random.random()))
    assert list(answer.token_ids) == new


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("url", ["grpc_url", "http_url"])
def test_sessions_of_such_a_graph(packaged, computed, name, url):
    logits = computed(name)
    with (
        Client(getattr(packaged.address, url), model=name) as client,
        client.session(transport="request") as session,
    ):
        np.testing.assert_allclose(session.append([5, 6, 7]), logits([5, 6, 7]), atol=1e-4)
        with session.fork() as fork:
            fork.rewind(1)
            np.testing.assert_allclose(fork.append([8, 9]), logits([5, 6, 8, 9]), atol=1e-4)
        np.testing.assert_allclose(session.append([10]), logits([5, 6, 7, 10]), atol=1e-4)
        session.rewind(4)
        np.testing.assert_allclose(session.append([11]), logits([11]), atol=1e-4)


def test_the_command_generates_from_such_a_graph(packaged, directories, computed, capsys):
    command = ["generate", PROMPT, "--model", "optimum-llama", "--url", packaged.address.grpc_url]
    options = ["--loop", "client", "--tokenizer", str(directories["optimum-llama"]), "--max-tokens", "1"]
    assert main([*command, *options, "--temperature", "0"]) == 0
    tokenizer = read_tokenizer(directories["optimum-llama"])
    ids = list(tokenizer.encode(PROMPT))
    new = int(computed("optimum-llama")(ids).argmax())
    assert capsys.readouterr().out == tokenizer.decode([*ids, new])[len(PROMPT) :] + "\n"


def test_who_asks_such_a_graph_for_text_is_told(packaged, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Client(packaged.address.grpc_url, model="optimum-llama") as client:
        with pytest.raises(ModelNotFound, match=r"'optimum-llama_step' is served, .* give loop='client'"):
            client.generate(PROMPT)
        with pytest.raises(ModelNotFound, match="pass tokenizer="):
            client.generate(PROMPT, loop="client")
        with (
            client.session(transport="state") as session,
            pytest.raises(InvalidRequest, match="'optimum-llama_step' goes with 'request'"),
        ):
            session.append([5])
