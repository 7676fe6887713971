"""What a model's process shares with Triton cannot grow: an answer that finds no place there is an error, and others go on."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

from gptport.server import running
from gptport_client import Client

NAME = "gpt2-tiny"
MODEL = """
import resource
from gptport_backend.model import TritonPythonModel

# The memory that is shared is a file: it stays as large as it is at first.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
"""
WIDE = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0, "seed": 1, "logprobs": 20}


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """Serves the model by a model.py of its own, which is the backend's, with a limit."""
    model = tmp_path_factory.mktemp("full") / NAME
    version = model / "1"
    version.mkdir(parents=True)
    config = (repository / NAME / "config.pbtxt").read_text()
    assert 'backend: "gptport"' in config
    (model / "config.pbtxt").write_text(config.replace('backend: "gptport"', 'backend: "python"'))
    for path in (repository / NAME).iterdir():
        if path.name not in ("config.pbtxt", "1"):
            (model / path.name).symlink_to(path.resolve())
    for path in (repository / NAME / "1").iterdir():
        (version / path.name).symlink_to(path.resolve())
    (version / "model.py").write_text(MODEL)
    with running(model.parent) as server:
        yield server


def ask(server, body):
    """The answer of /generate, one response."""
    request = urllib.request.Request(
        f"{server.address.http_url}/v2/models/{NAME}/generate", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def test_the_request_fails_and_others_do_not_notice(server, gauge, becomes):
    with Client(server.address.grpc_url, model=NAME) as client:
        alone = client.generate("Hello", max_tokens=200, ignore_eos=True).token_ids
        other = client.stream("Hello", max_tokens=200, ignore_eos=True)
        with pytest.raises(urllib.error.HTTPError) as failed:
            ask(server, {**WIDE, "text_input": "Hello", "n": 128})
        assert re.search(r"the answer cannot be sent: .*shared memory", failed.value.read().decode())
        list(other)
        assert other.result.token_ids == alone
        assert client.generate("Hello", max_tokens=200, ignore_eos=True).token_ids == alone
    becomes(0, gauge, "running", NAME)


def test_a_large_answer_comes_whole(server):
    """One that is sent in two parts: the answer, then the final flag."""
    answers = [{**WIDE, "text_input": "Hello", "seed": seed} for seed in range(1, 11)]
    alone = [ask(server, body)["output_ids"] for body in answers]
    several = ask(server, {**answers[0], "n": 10})
    assert several["output_ids"] == [token for ids in alone for token in ids]
    assert len(several["top_log_probs"]) == 20 * len(several["output_ids"])
