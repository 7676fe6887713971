"""What is checked before tritonserver is started, and what it is started with."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

import pytest

from gptport import libpython, triton_install
from gptport.address import Address
from gptport.errors import RepositoryError, ServerError, UsageError
from gptport.server import models_of


@pytest.fixture
def repository(tmp_path):
    """A repository with two text models, one with its step model."""
    for name in ("alpha", "alpha_step", "beta"):
        version = tmp_path / name / "1"
        version.mkdir(parents=True)
        (version / "manifest.json").write_text("{}")
        (tmp_path / name / "config.pbtxt").touch()
    (tmp_path / "README.md").touch()
    (tmp_path / ".gptport-half-written").mkdir()
    return tmp_path


def test_all_models_of_a_repository(repository):
    assert models_of(repository) == ["alpha", "alpha_step", "beta"]


def test_a_model_comes_with_its_step_model(repository):
    assert models_of(repository, ["alpha"]) == ["alpha", "alpha_step"]
    assert models_of(repository, ["beta"]) == ["beta"]
    assert models_of(repository, ["alpha_step"]) == ["alpha_step"]


def test_a_missing_repository_says_how_to_write_one(tmp_path):
    with pytest.raises(RepositoryError, match=r"there is no folder .*gptport export"):
        models_of(tmp_path / "nothing")


def test_an_empty_repository_says_how_to_add_a_model(tmp_path):
    with pytest.raises(RepositoryError, match=r"holds no model.*gptport export"):
        models_of(tmp_path)


def test_an_unknown_model_is_answered_with_those_there_are(repository):
    with pytest.raises(RepositoryError, match=r"no model 'gamma'; it has alpha, alpha_step, beta"):
        models_of(repository, ["gamma"])


@pytest.mark.parametrize("part", ["config.pbtxt", "1/manifest.json"])
def test_a_folder_that_gptport_did_not_write_is_named(repository, part):
    (repository / "beta" / part).unlink()
    with pytest.raises(RepositoryError, match=f"beta.*{Path(part).name}"):
        models_of(repository)
    assert models_of(repository, ["alpha"]) == ["alpha", "alpha_step"]


def test_a_model_without_a_version_is_named(repository):
    (repository / "beta" / "1" / "manifest.json").unlink()
    (repository / "beta" / "1").rmdir()
    with pytest.raises(RepositoryError, match=r"beta.*no version folder"):
        models_of(repository)


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_in_use_is_named_with_its_option(option):
    address = Address.free()
    with socket.socket() as other:
        other.bind((address.host, address.ports[option]))
        other.listen()
        with pytest.raises(
            ServerError, match=f"port {address.ports[option]}: Address already in use.*{option}"
        ):
            address.check_free()
    address.check_free()


def test_free_ports_are_not_those_that_others_get_by_chance():
    assert max(Address.free().ports.values()) < 32768


def test_a_host_that_is_not_ours_is_named():
    with pytest.raises(ServerError, match=r"203\.0\.113\.1 port"):
        Address("203.0.113.1", 8000, 8001, 8002).check_free()


@pytest.mark.parametrize(
    "ports", [(0, 8001, 8002), (8000, 65536, 8002), (8000, -1, 8002), (8000, 8000, 8002)]
)
def test_ports_that_cannot_be(ports):
    with pytest.raises(UsageError, match="port"):
        Address("127.0.0.1", *ports)


def test_addresses_as_clients_want_them():
    four, six = Address("127.0.0.1", 1, 2, 3), Address("::1", 1, 2, 3)
    assert (four.http_url, four.grpc_url) == ("http://127.0.0.1:1", "127.0.0.1:2")
    assert six.metrics_url == "http://[::1]:3/metrics"


def test_without_a_tritonserver_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"pip install 'gptport\[serve\]'"):
        triton_install.find()


def test_the_container_comes_first(monkeypatch, tmp_path):
    binary = tmp_path / "tritonserver"
    binary.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(triton_install, "CONTAINER_BACKENDS", tmp_path)
    assert triton_install.find() == triton_install.Installation(binary, tmp_path)


def test_the_container_keeps_its_backends(tmp_path):
    theirs, folder = tmp_path / "theirs", tmp_path / "ours"
    for name in ("python", "onnxruntime", "tensorrt"):
        (theirs / name).mkdir(parents=True)
    folder.mkdir()
    backends = triton_install.assemble(triton_install.Installation(Path("tritonserver"), theirs), folder)
    assert (backends / "onnxruntime").resolve() == theirs / "onnxruntime"
    assert (backends / "tensorrt").resolve() == theirs / "tensorrt"
    assert (backends / "gptport" / "model.py").is_file()


def test_the_stand_in_takes_the_place_of_a_missing_onnxruntime_backend(tmp_path):
    backends = triton_install.assemble(triton_install.find(), tmp_path)
    assert (backends / "onnxruntime" / "model.py").resolve().name == "onnxruntime_stand_in.py"
    assert {path.name for path in (backends / "python").iterdir()} >= {
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    }


def test_a_missing_libpython_is_an_error_and_not_a_hang(monkeypatch, tmp_path):
    monkeypatch.setattr(libpython, "NAME", "libpython9.99.so.1.0")
    with pytest.raises(ServerError, match=r"tritonserver needs libpython.*sudo apt install libpython"):
        triton_install.assemble(triton_install.find(), tmp_path)


def test_python_processes_of_the_server_use_this_python(tmp_path):
    values = triton_install.environment(triton_install.find(), tmp_path, {"PATH": "/bin", "HOME": "/"})
    assert values["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert values["LD_LIBRARY_PATH"].split(":")[0] == str(tmp_path / "lib")
    assert values["HOME"] == "/"
