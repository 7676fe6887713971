"""The command line of tritonserver: what it says on which release, for whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptport import triton_install
from gptport.address import Address
from gptport.errors import UsageError
from gptport.triton_options import ServerOptions, admin_key, command_line


def arguments(host="127.0.0.1", options=None, knows=lambda _: False):
    address = Address(host, 8000, 8001, 8002)
    return command_line(
        Path("/models"), Path("/backends"), ["a", "a_step"], address, options or ServerOptions(), "r_", knows
    )


def test_the_models_and_nothing_else_are_loaded():
    found = arguments()
    assert [part for part in found if part.startswith("--load-model")] == [
        "--load-model=a",
        "--load-model=a_step",
    ]
    assert "--model-control-mode=explicit" in found


def test_all_three_endpoints_listen_where_they_are_told_to():
    found = arguments("0.0.0.0")
    assert {f"--{name}-address=0.0.0.0" for name in ("http", "grpc", "metrics")} <= set(found)


@pytest.mark.parametrize(
    ("host", "allowed"), [("127.0.0.1", "true"), ("::1", "true"), ("localhost", "true"), ("0.0.0.0", "false")]
)
def test_shared_memory_of_clients_is_for_this_machine(host, allowed):
    assert f"--allow-client-shm={allowed}" in arguments(
        host, knows=lambda option: option == "allow-client-shm"
    )


def test_a_release_is_not_given_options_that_it_does_not_know():
    assert not [part for part in arguments() if "shm=" in part]


def test_the_release_is_asked_for_what_it_knows(tmp_path):
    installation = triton_install.find()
    triton_install.assemble(installation, tmp_path)
    assert triton_install.knows(installation, tmp_path, "exit-timeout-secs")
    assert not triton_install.knows(installation, tmp_path, "exit-timeout")


def test_admin_calls_are_restricted_on_both_protocols():
    found = arguments(options=ServerOptions(admin_key="k"))
    calls = "model-repository,shared-memory,logging,trace:gptport-admin-key=k"
    assert {f"--http-restricted-api={calls}", f"--grpc-restricted-protocol={calls}"} <= set(found)
    assert not [part for part in arguments() if "restricted" in part]


def test_the_admin_key_is_the_users_or_nobodys():
    assert admin_key({"GPTPORT_ADMIN_KEY": "mine"}) == "mine"
    assert len(admin_key({})) >= 32
    assert admin_key({}) != admin_key({"GPTPORT_ADMIN_KEY": ""})


@pytest.mark.parametrize(
    "values", [{"drain_seconds": -1}, {"admin_key": ""}, {"admin_key": "a b"}, {"admin_key": "ü"}]
)
def test_options_that_cannot_be(values):
    with pytest.raises(UsageError):
        ServerOptions(**values)


def test_requests_are_traced_only_if_asked_for():
    assert not [part for part in arguments() if part.startswith("--trace-config")]
    found = arguments(options=ServerOptions(trace_url="http://collector:4318/v1/traces", trace_rate=10))
    assert {
        "--trace-config=mode=opentelemetry",
        "--trace-config=rate=10",
        "--trace-config=opentelemetry,url=http://collector:4318/v1/traces",
    } <= set(found)


def test_what_is_no_url_is_no_collector():
    with pytest.raises(UsageError, match=r"--trace is collector; give a URL"):
        ServerOptions(trace_url="collector")
