"""Prometheus, as it is configured, scrapes a real Triton; what the dashboard asks for is there."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from gptport.address import Address
from gptport.server import running
from gptport_backend.metrics import METRICS
from gptport_client import Client

MODEL = "gpt2-tiny"


@pytest.fixture(scope="module")
def panels(root):
    return json.loads((root / "docker/grafana/dashboards/gptport.json").read_text())["panels"]


@pytest.fixture(scope="module")
def configuration(root):
    return yaml.safe_load((root / "docker/prometheus/prometheus.yml").read_text())


def queries(panels) -> dict[str, str]:
    """Title and letter of each query → the query."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels
        for target in panel["targets"]
    }


NAME = re.compile(r"\b(?:up|(?:gptport|nv)_\w+)\b")


def named(panels) -> set[str]:
    """The metrics that the queries ask for."""
    return {name for query in queries(panels).values() for name in NAME.findall(query)}


def test_the_dashboard_shows_all_that_the_engine_counts_and_nothing_else_of_it(panels):
    shown = {name for name in named(panels) if name.startswith("gptport_")}
    counted = set()
    for metric in METRICS:
        parts = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        counted |= {metric.name + part for part in parts}
    assert shown == counted


def test_every_panel_has_a_place_of_its_own(panels):
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)


def test_grafana_finds_its_prometheus_and_its_dashboard(root, panels):
    provisioning = root / "docker/grafana/provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/gptport.yaml").read_text())["providers"]
    (mount,) = [
        mount
        for mount in yaml.safe_load((root / "docker/compose.yaml").read_text())["services"]["grafana"][
            "volumes"
        ]
        if mount["source"] == "grafana/dashboards"
    ]
    assert provider["options"]["path"] == mount["target"]


def test_prometheus_looks_for_triton_by_the_name_and_port_that_it_has(root, configuration):
    (job,) = configuration["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    compose = yaml.safe_load((root / "docker/compose.yaml").read_text())
    assert names["names"] == compose["x-triton"]["networks"]["default"]["aliases"]
    assert (names["type"], names["port"]) == ("A", 8002)


def test_prometheus_accepts_its_configuration(needs, root):
    promtool = needs("promtool")
    subprocess.run([promtool, "check", "config", root / "docker/prometheus/prometheus.yml"], check=True)


@pytest.fixture(scope="module")
def server(filled):
    with running(filled) as server:
        yield server


@pytest.mark.e2e
def test_a_server_has_every_metric_of_the_dashboard_with_its_labels(server, panels):
    load(server)
    asked = {name: query for name, query in queries(panels).items() if "GPU" not in name}
    wanted = {name for query in asked.values() for name in NAME.findall(query)} - {"up"}
    end = time.monotonic() + 30
    # Triton looks at the machine now and then.
    while wanted - labels(server).keys() and time.monotonic() < end:
        time.sleep(0.5)
    found = labels(server)
    assert wanted <= found.keys()
    for name, query in asked.items():
        by = {label for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in labels.split(", ")}
        for metric in set(NAME.findall(query)) & wanted:
            assert by <= found[metric], name


def labels(server) -> dict[str, set[str]]:
    """Each metric that the server shows now, and the names of its labels."""
    with urllib.request.urlopen(server.address.metrics_url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {re.split("[{ ]", line)[0]: set(re.findall(r'(\w+)="', line)) for line in lines if line[:1] != "#"}


def load(server) -> None:
    """A request that repeats itself, so that tokens are guessed, and a step of the client's own loop."""
    with Client(server.address.grpc_url, model=MODEL) as client, client.session() as session:
        client.generate([5, 6, 7] * 6, max_tokens=24, prompt_lookup=8)
        session.append([5])


@pytest.fixture
def prometheus(needs, server, configuration, tmp_path):
    """The URL of a Prometheus with our configuration, but for the name, which is given as an address."""
    program = needs("prometheus")
    (job,) = configuration["scrape_configs"]
    target = {"targets": [f"{server.address.host}:{server.address.metrics_port}"]}
    here = {"scrape_configs": [{"job_name": job["job_name"], "static_configs": [target]}]}
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration | here))
    listen = Address.free().grpc_url
    options = {
        "config.file": tmp_path / "prometheus.yml",
        "storage.tsdb.path": tmp_path / "data",
        "web.listen-address": listen,
    }
    process = subprocess.Popen(
        [program, *(f"--{name}={value}" for name, value in options.items())], stderr=subprocess.DEVNULL
    )
    yield f"http://{listen}"
    process.terminate()
    process.wait()


def ask(prometheus: str, query: str) -> list[float]:
    """The values that a query gives now."""
    parameters = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "1m")})
    try:
        with urllib.request.urlopen(f"{prometheus}/api/v1/query?{parameters}", timeout=5) as answer:
            result = json.load(answer)["data"]["result"]
    except ConnectionError:
        return []
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):  # it is starting
            return []
        raise
    return [float(series["value"][1]) for series in result]


@pytest.mark.e2e
def test_every_query_of_the_dashboard_has_an_answer(prometheus, server, panels):
    asked = {name: query for name, query in queries(panels).items() if "GPU" not in name}
    empty, end = set(asked), time.monotonic() + 60
    while empty and time.monotonic() < end:
        load(server)
        time.sleep(1)
        empty = {name for name in empty if not any(value == value for value in ask(prometheus, asked[name]))}
    assert not empty
    assert ask(prometheus, asked["Servers that answer A"]) == [1.0]
    for name in ("Tokens a second A", "Mean time of a request A", "Time to first token A"):
        assert max(ask(prometheus, asked[name])) > 0
    shares = ask(prometheus, asked["Share of the loop's time, by part of a step A"])
    assert sum(shares) == pytest.approx(1)
    assert 0 <= max(ask(prometheus, asked["Share of the guesses that is right A"])) <= 1
