"""What an export wrote, in the real server: damage is named, a rollback is served, and instances are as they were asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import urllib.request

import pytest

from gptport.errors import ServerError
from gptport.rollback import rollback
from gptport.server import running
from gptport_backend.memory import HostMemory
from gptport_client import Client

NAME = "gpt2-tiny"


@pytest.fixture
def models(checkpoints, repository, tmp_path):
    """A repository of its own; `export` adds a version, `copy` what was exported without options."""

    class Models:
        folder = tmp_path / "models"
        model = folder / NAME

        def export(self, *options):
            command = [
                "export",
                str(checkpoints[NAME]),
                "--name",
                NAME,
                "--repository",
                str(self.folder),
                *options,
            ]
            subprocess.run([sys.executable, "-m", "gptport", *command], check=True, capture_output=True)

        def copy(self):
            for name in (NAME, f"{NAME}_step"):
                shutil.copytree((repository / name).resolve(), self.folder / name, symlinks=True)

    return Models()


def client_of(server):
    return Client(server.address.grpc_url, model=NAME, metrics_url=server.address.metrics_url)


def length(server):
    """The max_length of what is served."""
    with client_of(server) as client:
        client.generate("one", max_tokens=2)
        assert client.generate("one", max_tokens=2, loop="client").text
    with urllib.request.urlopen(f"{server.address.http_url}/v2/models/{NAME}/config", timeout=10) as answer:
        text = answer.read().decode()
    return int(text.split('"max_length":{"string_value":"')[1].split('"')[0])


def test_a_rollback_is_what_a_server_serves(models):
    models.export("--max-length", "64")
    models.export("--max-length", "65")
    with running(models.folder) as server:
        assert length(server) == 65
    rollback(models.model)
    with running(models.folder) as server:
        assert length(server) == 64


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data", "tokenizer.json"])
def test_a_flipped_bit_is_named_in_the_models_status(models, file):
    models.copy()
    path = models.model / "1" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    damage = rf"{NAME} cannot be loaded: .*/1/{file} is damaged: its sha256"
    with pytest.raises(ServerError, match=damage), running(models.folder, [NAME]):
        pass


@pytest.mark.parametrize(
    ("found", "set_to", "said"),
    [
        ("", "max_batch_size: 4", "max_batch_size in config.pbtxt is 4; leave it out"),
        ("decoupled: true", "decoupled: false", "model_transaction_policy in config.pbtxt must be"),
        (
            "",
            'parameters { key: "threads" value { string_value: "100000" } }',
            "the parameter threads in config.pbtxt is '100000'; it must be a whole number, from 1 to 1024",
        ),
    ],
    ids=["batches", "one response", "threads"],
)
def test_a_config_that_would_end_or_stop_the_server_is_refused(models, found, set_to, said):
    models.copy()
    path = models.model / "config.pbtxt"
    config = path.read_text()
    path.write_text(config.replace(found, set_to, 1) if found else f"{config}\n{set_to}\n")
    refused = f"{NAME} cannot be loaded: .*{re.escape(said)}"
    with pytest.raises(ServerError, match=refused), running(models.folder, [NAME]):
        pass


def test_two_instances_share_the_requests_and_each_sequence_has_its_own(models):
    models.export("--instances", "2", "--threads", "1")
    with running(models.folder) as server, client_of(server) as client:
        for loop in ("server", "client"):
            assert len({client.generate("one", max_tokens=8, loop=loop).text for _ in range(4)}) == 1
        budget = client.metrics().total("gptport_kv_cache_budget_bytes", model=NAME)
        assert budget == pytest.approx(HostMemory().free() / 4, rel=0.4)  # of a half


def test_the_text_model_is_warm_when_it_is_ready(models):
    """Triton ran the request of model_warmup, and without the file that it names would not load the model."""
    models.copy()
    with running(models.folder):
        pass
    shutil.rmtree(models.model / "warmup")
    with pytest.raises(ServerError, match=f"{NAME} cannot be loaded: .*warmup"), running(models.folder):
        pass
