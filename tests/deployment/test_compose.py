"""The compose files as Docker Compose itself reads them, which checks them against the Compose specification's schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptport.arguments import parser
from gptport.triton_options import ADMIN_HEADER

COMPOSE = Path(sys.executable).parent / "docker-compose"
pytestmark = pytest.mark.skipif(
    not COMPOSE.exists(), reason="there is no docker-compose; make setup installs it"
)
OUR_OWN, FOREIGN = {"export", "triton", "worker", "gateway"}, {"proxy", "prometheus", "grafana"}


def compose(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMPOSE, *arguments, "config", "--format=json"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def services(folder: Path, *arguments: str, **variables: str):
    ran = compose(folder, *arguments, **variables)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr  # no warning either
    return json.loads(ran.stdout)["services"]


@pytest.fixture(scope="module")
def everything(root):
    """The services of all profiles."""
    return services(root, "--profile=*")


def published(service) -> set[tuple[str, str]]:
    return {(port["host_ip"], port["published"]) for port in service.get("ports", [])}


def test_without_a_profile_it_is_triton_and_what_fills_its_repository(root):
    assert set(services(root)) == {"export", "triton"}
    assert services(root) == services(root / "docker")


@pytest.mark.parametrize(
    ("profile", "more"),
    [("scale", {"worker", "proxy"}), ("gateway", {"gateway"}), ("monitoring", {"prometheus", "grafana"})],
)
def test_a_profile_adds_its_services(root, profile, more):
    assert set(services(root, f"--profile={profile}")) == {"export", "triton"} | more


def test_a_wrong_key_would_be_found(tmp_path):
    (tmp_path / "compose.yaml").write_text("services: {a: {image: b, cap_drops: [ALL]}}")
    ran = compose(tmp_path)
    assert ran.returncode != 0
    assert "cap_drops" in ran.stderr


def test_every_service_is_hardened(everything):
    assert set(everything) == OUR_OWN | FOREIGN
    for name, service in everything.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"] == {"max-file": "5", "max-size": "10m"}, name
        assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service.get("read_only") or name == "export", name  # an export needs room for a checkpoint


def test_our_own_images_do_not_run_as_root(root, everything):
    assert {everything[name]["user"] for name in OUR_OWN} == {"1000:1000"}
    assert services(root, GPTPORT_USER="7:8")["triton"]["user"] == "7:8"


def test_ports_are_on_this_machine_unless_asked(root, everything):
    assert {host for service in everything.values() for host, _ in published(service)} == {"127.0.0.1"}
    assert published(services(root, GPTPORT_BIND="0.0.0.0")["triton"]) == {
        ("0.0.0.0", port) for port in ("8000", "8001", "8002")
    }


def test_no_two_services_want_the_same_port(everything):
    ports = [port for service in everything.values() for _, port in published(service)]
    assert len(ports) == len(set(ports))


def test_only_the_export_writes_models(everything):
    mounts = {
        name: mount
        for name, service in everything.items()
        for mount in service.get("volumes", [])
        if mount["target"] == "/models"
    }
    assert {name for name, mount in mounts.items() if not mount.get("read_only")} == {"export"}
    assert set(mounts) == {"export", "triton", "worker"}


def test_triton_waits_for_the_export_and_others_for_triton(everything):
    waits = {name: service.get("depends_on", {}) for name, service in everything.items()}
    assert waits["triton"]["export"]["condition"] == "service_completed_successfully"
    assert (
        waits["gateway"]["triton"]["condition"] == waits["proxy"]["triton"]["condition"] == "service_healthy"
    )


def test_triton_has_time_and_memory(everything):
    for name in ("triton", "worker"):
        service = everything[name]
        assert service["shm_size"] == str(2**30)
        assert service["ulimits"] == {"memlock": -1, "nofile": 65536, "stack": 67108864}
        assert (
            service["stop_grace_period"] == "45s"
        )  # --drain=30 in the Dockerfile, and 3 s until it is killed


@pytest.mark.parametrize("service", sorted(FOREIGN))
def test_foreign_images_have_a_tag_and_take_a_digest(root, everything, service):
    image = everything[service]["image"]
    assert image.rpartition(":")[2] not in ("", "latest")
    name = {"proxy": "HAPROXY"}.get(service, service.upper())
    digest = f"@sha256:{'0' * 64}"
    assert services(root, "--profile=*", **{f"{name}_DIGEST": digest})[service]["image"] == image + digest


def test_the_base_image_has_a_tag_and_takes_a_digest(root, everything):
    assert everything["triton"]["build"]["args"]["TRITON_TAG"] == "26.08-py3"
    for service in ("triton", "export"):
        built = services(root, TRITON_DIGEST="@sha256:1")[service]["build"]
        assert (built["target"], built["args"]["TRITON_DIGEST"]) == (
            {"triton": "serve"}.get(service, service),
            "@sha256:1",
        )


def test_with_a_gpu(root):
    found = services(root, "-f", "compose.yaml", "-f", "docker/compose.gpu.yaml", "--profile=*")
    for name in ("triton", "worker"):
        (device,) = found[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"], device["count"]) == ("nvidia", ["gpu"], -1)
        assert "memory" in found[name]["deploy"]["resources"]["limits"]
    assert found["triton"]["build"]["args"]["ONNXRUNTIME"] == "onnxruntime-gpu"
    assert found["export"]["command"] == ["smollm2", "--precision", "fp16"]
    assert {found[name]["image"] for name in ("triton", "worker", "gateway")} == {"gptport-serve-gpu"}


def test_files_that_are_mounted_are_there(everything):
    sources = {
        mount["source"]
        for service in everything.values()
        for mount in service.get("volumes", [])
        if mount["type"] == "bind"
    }
    assert len(sources) == 5
    assert [source for source in sources if not Path(source).exists()] == []


def test_the_gateway_runs_the_command_with_the_key_that_triton_wants(root):
    program, *words = services(root, "--profile=gateway", GPTPORT_ADMIN_KEY="open-sesame")["gateway"][
        "command"
    ]
    options = parser().parse_args(words)
    assert (program, options.command, options.url, options.port) == (
        "gptport",
        "gateway",
        "triton:8001",
        8080,
    )
    assert f"triton-grpc-protocol-{ADMIN_HEADER}=open-sesame" in words[-1]
