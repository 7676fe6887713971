"""Directories that other exporters wrote, packaged by the command, on the real Triton; see tests/exporter/foreign/make.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gptport.cli import main
from gptport.console import Steps
from gptport.samples import sample
from gptport.server import running
from gptport_client import Client

FOREIGN = Path(__file__).parents[1] / "exporter" / "foreign"
PROMPT = "Alice was beginning to get very tired"


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Name → directory with a graph and a tokenizer."""
    together = tmp_path_factory.mktemp("foreign")
    tokenizer = sample("gpt2-tiny", together / "tokenizer", Steps()) / "tokenizer.json"
    found = {}
    for name in ("genai-fp32", "genai-int4"):
        found[name] = shutil.copytree(FOREIGN / name, together / name)
        shutil.copy(tokenizer, found[name])
    return found


@pytest.fixture(scope="module")
def packaged(directories, tmp_path_factory):
    """A server of all of them."""
    repository = tmp_path_factory.mktemp("repository")
    for directory, cache in zip(directories.values(), ("server", "client"), strict=True):
        options = ["--repository", str(repository), "--step-cache", cache]
        assert main(["package", str(directory), *options]) == 0
    with running(repository) as server:
        yield server


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
