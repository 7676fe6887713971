"""`gptport serve`: a model of a few lines, so that each start takes a second."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import signal
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from gptport.errors import ServerError
from gptport.server import running
from gptport_client import Client, InvalidRequest
from serve_command import PATIENCE, gone

if TYPE_CHECKING:
    from pathlib import Path

ECHO = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.began = args["model_repository"] + "/began"
        {initialize}

    def execute(self, requests):
        open(self.began, "w").close()
        time.sleep({seconds})
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy())])
            for r in requests
        ]
"""
CONFIG = """
backend: "python"
input {{ name: "x" data_type: TYPE_INT32 dims: [1] }}
output {{ name: "y" data_type: TYPE_INT32 dims: [1] }}
instance_group {{ kind: KIND_CPU count: 1 }}
"""


def add_model(repository: Path, name: str, initialize: str = "pass", seconds: float = 0) -> None:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "manifest.json").write_text("{}")
    (version / "model.py").write_text(ECHO.format(initialize=initialize, seconds=seconds))
    (repository / name / "config.pbtxt").write_text(CONFIG.format())


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    add_model(folder, "echo")
    return folder


def ask(http_url: str, value: int, model: str = "echo") -> int:
    tensor = {"name": "x", "datatype": "INT32", "shape": [1], "data": [value]}
    request = urllib.request.Request(
        f"{http_url}/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)["outputs"][0]["data"][0]


def begun(repository: Path) -> bool:
    """Whether a request has reached the model."""
    return (repository / "echo" / "began").exists()


def ask_in_vain(http_url: str) -> None:
    with pytest.raises(http.client.RemoteDisconnected):
        ask(http_url, 5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_and_nothing_is_left(command, repository, number):
    server = command(repository)
    processes = server.wait_until_ready()
    assert ask(server.address.http_url, 7) == 7
    server.process.send_signal(number)
    code, said = server.end()
    assert (code, said.splitlines()[-1]) == (0, "Stopped.")
    assert gone(processes)
    assert server.leftovers() == []


def test_what_runs_may_finish(command, tmp_path, becomes):
    add_model(tmp_path / "slow", "echo", seconds=2)
    server = command(tmp_path / "slow")
    server.wait_until_ready()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(server.address.http_url, 5)))
    asking.start()
    becomes(True, begun, tmp_path / "slow")
    server.process.send_signal(signal.SIGINT)
    assert server.end()[0] == 0
    asking.join()
    assert answers == [5]


def test_what_runs_is_not_waited_for_longer_than_allowed(command, tmp_path, becomes):
    add_model(tmp_path / "slow", "echo", seconds=600)
    server = command(tmp_path / "slow", "--drain=1")
    processes = server.wait_until_ready()
    asking = threading.Thread(target=ask_in_vain, args=[server.address.http_url])
    asking.start()
    becomes(True, begun, tmp_path / "slow")
    server.process.send_signal(signal.SIGTERM)
    assert server.end()[0] == 0
    asking.join()
    assert gone(processes)


def test_admin_calls_need_the_key_and_others_do_not(command, repository, monkeypatch):
    monkeypatch.setenv("GPTPORT_ADMIN_KEY", "open-sesame")
    server = command(repository, "--restrict-admin")
    server.wait_until_ready()
    assert ask(server.address.http_url, 3) == 3
    unload = f"{server.address.http_url}/v2/repository/models/echo/unload"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(unload, b"{}"))
    assert refused.value.code == 403
    key = {"gptport-admin-key": "open-sesame"}
    with urllib.request.urlopen(urllib.request.Request(unload, b"{}", key)) as answer:
        assert answer.status == 200


def test_clients_that_list_models_need_the_key_too(command, repository, monkeypatch):
    monkeypatch.setenv("GPTPORT_ADMIN_KEY", "open-sesame")
    server = command(repository, "--restrict-admin")
    server.wait_until_ready()
    with (
        Client(server.address.grpc_url, model="echo") as client,
        pytest.raises(InvalidRequest, match="admin-key"),
    ):
        client.models()
    key = {"triton-grpc-protocol-gptport-admin-key": "open-sesame"}
    with Client(server.address.grpc_url, model="echo", headers=key) as client:
        assert [model.name for model in client.models()] == ["echo"]


def test_the_log_can_be_shown(command, repository):
    server = command(repository, "--show-log")
    shown = itertools.takewhile(lambda line: not line.startswith("Serving"), server.process.stderr)
    assert "successfully loaded 'echo'" in "".join(shown)


def test_a_second_signal_does_not_wait(command, tmp_path, becomes):
    add_model(tmp_path / "slow", "echo", seconds=600)
    server = command(tmp_path / "slow")
    processes = server.wait_until_ready()
    asking = threading.Thread(target=ask_in_vain, args=[server.address.http_url])
    asking.start()
    becomes(True, begun, tmp_path / "slow")
    server.process.send_signal(signal.SIGINT)
    becomes(False, server.is_ready)
    server.process.send_signal(signal.SIGINT)
    assert server.end()[0] == 0
    asking.join()
    assert gone(processes)
    assert server.leftovers() == []


def test_the_server_ends_when_the_command_is_killed(command, repository):
    server = command(repository)
    processes = server.wait_until_ready()
    server.process.kill()
    server.end()
    assert gone(processes)
    assert not server.regions()


def test_what_a_killed_server_left_in_shared_memory_goes_with_the_next_start(command, repository):
    server = command(repository)
    processes = [*server.wait_until_ready(), psutil.Process(server.process.pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another go, and clears away
        for process in processes:
            process.send_signal(number)
    server.end()
    assert server.regions()
    with running(repository):
        assert not server.regions()


def test_a_server_that_dies_is_an_error(command, repository):
    server = command(repository)
    processes = server.wait_until_ready()
    processes[0].kill()
    code, said = server.end()
    assert code == 1
    assert "gptport: tritonserver has ended by itself: signal 9; its log is " in said
    assert gone(processes)
    assert [name for name in server.leftovers() if not name.endswith(".log")] == []


def test_a_models_process_that_dies_ends_the_server_with_an_error(command, repository):
    add_model(repository, "slow")
    server = command(repository)
    processes = server.wait_until_ready()
    next(process for process in processes if any("/slow/1/" in part for part in process.cmdline())).kill()
    code, said = server.end()
    assert code == 1
    assert "gptport: the process of slow has ended by itself: signal 9." in said
    assert gone(processes)
    assert [name for name in server.leftovers() if not name.endswith(".log")] == []


def test_a_model_that_is_unloaded_is_not_missed(command, repository):
    add_model(repository, "other")
    server = command(repository)
    server.wait_until_ready()
    for action in ("unload", "load", "unload"):
        path = f"{server.address.http_url}/v2/repository/models/other/{action}"
        urllib.request.urlopen(urllib.request.Request(path, b"{}"), timeout=PATIENCE).close()
        time.sleep(3)
        assert ask(server.address.http_url, 4) == 4


def test_a_model_that_cannot_be_loaded_is_named_with_its_reason(command, repository):
    add_model(repository, "broken", initialize="raise ValueError('no weights')")
    server = command(repository)
    code, said = server.end()
    assert code == 1
    assert re.fullmatch(r"gptport: broken cannot be loaded: .*no weights; its log is \S+\.log\n", said)
    assert [name for name in server.leftovers() if not name.endswith(".log")] == []


@pytest.mark.parametrize("name", ["my models", "modèles", "$HOME & (more)"])
def test_a_repository_may_have_any_path(command, tmp_path, name):
    add_model(
        tmp_path / name, "echo", initialize="open(args['model_repository'] + '/1/manifest.json').close()"
    )
    server = command(tmp_path / name)
    server.wait_until_ready()
    assert ask(server.address.http_url, 7) == 7
    server.process.terminate()
    assert server.end()[0] == 0
    assert server.leftovers() == []


def test_a_config_that_triton_does_not_understand_is_named(command, repository):
    (repository / "echo" / "config.pbtxt").write_text("no such field: 1")
    code, said = command(repository).end()
    assert code == 1
    why = r".*failed to read text proto from \S+/echo/config\.pbtxt.*"
    assert re.fullmatch(rf"gptport: echo cannot be loaded: {why}; its log is \S+\.log\n", said)


def test_a_broken_model_does_not_matter_if_another_is_asked_for(command, repository):
    add_model(repository, "broken", initialize="raise ValueError('no weights')")
    server = command(repository, "--model=echo")
    server.wait_until_ready()
    assert ask(server.address.http_url, 3) == 3
    with pytest.raises(urllib.error.HTTPError):
        ask(server.address.http_url, 3, "broken")


def test_a_port_in_use_is_one_clear_line(command, repository):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = command(repository, f"--grpc-port={port}")
        code, said = server.end()
    assert code == 1
    assert (
        said
        == f"gptport: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --grpc-port\n"
    )
    assert server.leftovers() == []


def test_two_servers_stand_beside_each_other(repository):
    with running(repository) as one, running(repository) as other:
        assert ask(one.address.http_url, 1) == ask(other.address.http_url, 1)


def test_a_model_that_takes_too_long_to_load(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the log stays
    add_model(tmp_path / "slow", "echo", initialize="time.sleep(600)")
    with pytest.raises(ServerError, match=r"not ready after 1 s"), running(tmp_path / "slow", timeout=1):
        pass
