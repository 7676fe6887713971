"""The manifests: against the schemas of Kubernetes, against each other, and what kustomize makes of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make setup installs it")
CORE = ("base", "proxy")
VERSIONS = ("1.31", "1.37")


def documents(folder):
    """The resources in the files of a folder, but for those of kustomize and KServe."""
    files = [path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text())]


@pytest.fixture(scope="module")
def kubernetes(root):
    return root / "kubernetes"


@pytest.fixture(scope="module")
def base(kubernetes):
    """(kind, name) → resource."""
    return {(found["kind"], found["metadata"]["name"]): found for found in documents(kubernetes / "base")}


@pytest.fixture(scope="module")
def build(kubernetes):
    """What kustomize makes of an overlay: (kind, name) → resource."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl, which has kustomize in it")

    def run(overlay: str):
        ran = subprocess.run(
            [kubectl, "kustomize", kubernetes / overlay], capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return {(found["kind"], found["metadata"]["name"]): found for found in yaml.safe_load_all(ran.stdout)}

    return run


def check(resource) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("folder", CORE)
def test_every_resource_fits_its_schema(kubernetes, folder):
    found = documents(kubernetes / folder)
    assert len(found) >= 2
    for resource in found:
        check(resource)


def test_a_wrong_field_would_be_found(base):
    wrong = json.loads(json.dumps(base["Deployment", "gptport"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnly"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        check(wrong)


@pytest.mark.parametrize("overlay", ["cpu", "gpu", "proxy"])
def test_every_overlay_fits_the_schemas_when_built(build, overlay):
    for resource in build(overlay).values():
        check(resource)


def triton(deployment):
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


def test_the_overlays_differ_by_the_gpu(build):
    cpu, gpu = (triton(build(overlay)["Deployment", "gptport"]) for overlay in ("cpu", "gpu"))
    assert (cpu["image"], gpu["image"]) == ("gptport-serve", "gptport-serve-gpu")
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    job = build("gpu")["Job", "gptport-export"]["spec"]["template"]["spec"]["containers"][0]
    assert job["args"] == ["smollm2", "--precision", "fp16"]


def test_the_proxy_has_the_configuration_that_is_tested(build, root):
    (configuration,) = (found for (kind, _), found in build("proxy").items() if kind == "ConfigMap")
    assert configuration["data"]["haproxy.cfg"] == (root / "docker/haproxy.cfg").read_text()
    proxy = build("proxy")["Deployment", "gptport-proxy"]["spec"]["template"]["spec"]
    assert proxy["volumes"][0]["configMap"]["name"] == configuration["metadata"]["name"]
    variables = {variable["name"] for variable in proxy["containers"][0]["env"]}
    used = set(re.findall(r"\$\{(GPTPORT_\w+)", configuration["data"]["haproxy.cfg"]))
    assert used - variables == {"GPTPORT_LISTEN"}
    compose = yaml.safe_load((root / "docker/compose.yaml").read_text())
    assert compose["services"]["proxy"]["image"].startswith(proxy["containers"][0]["image"])


def test_a_pod_may_drain_before_it_is_killed(base, root):
    pod = base["Deployment", "gptport"]["spec"]["template"]["spec"]
    pause = int(triton(base["Deployment", "gptport"])["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = int(re.findall(r"--drain=(\d+)", (root / "docker/Dockerfile").read_text())[-1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain + 10
    assert base["Deployment", "gptport"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_container_runs_the_command_of_its_image(base):
    container = triton(base["Deployment", "gptport"])
    assert not {"command", "args"} & set(container)


def test_probes_and_services_use_ports_that_there_are(base):
    container = triton(base["Deployment", "gptport"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert {
        container[f"{probe}Probe"]["httpGet"]["port"] for probe in ("startup", "readiness", "liveness")
    } == {"http"}
    for name in ("gptport", "gptport-pods"):
        for port in base["Service", name]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_everything_selects_the_same_pods(base):
    labels = base["Deployment", "gptport"]["spec"]["template"]["metadata"]["labels"]
    assert base["Deployment", "gptport"]["spec"]["selector"]["matchLabels"] == labels
    assert base["PodDisruptionBudget", "gptport"]["spec"]["selector"]["matchLabels"] == labels
    assert {
        base["Service", name]["spec"]["selector"].items() <= labels.items()
        for name in ("gptport", "gptport-pods")
    } == {True}


def test_no_container_has_more_rights_than_it_needs(base, kubernetes):
    resources = [*base.values(), *documents(kubernetes / "proxy")]
    pods = [found["spec"]["template"]["spec"] for found in resources if "template" in found["spec"]]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_models_are_read_only_but_for_the_job(base):
    pod = base["Deployment", "gptport"]["spec"]["template"]["spec"]
    mounts = [
        m
        for c in pod["containers"] + pod["initContainers"]
        for m in c["volumeMounts"]
        if m["name"] == "models"
    ]
    assert [mount["readOnly"] for mount in mounts] == [True, True]


def test_the_adapter_has_the_metrics_that_the_autoscaler_asks_for(base, kubernetes):
    asked = {
        metric["pods"]["metric"]["name"]
        for metric in base["HorizontalPodAutoscaler", "gptport"]["spec"]["metrics"]
    }
    rules = yaml.safe_load((kubernetes / "prometheus-adapter/values.yaml").read_text())["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == asked


def test_kserve_runs_the_command_of_the_image_on_its_own_folder(kubernetes, root):
    runtime, service = yaml.safe_load_all((kubernetes / "kserve/inferenceservice.yaml").read_text())
    (container,) = runtime["spec"]["containers"]
    command = json.loads(re.findall(r"(?m)^CMD (.*)$", (root / "docker/Dockerfile").read_text())[-1])
    assert container["args"] == [part.replace("/models", "/mnt/models") for part in command]
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
