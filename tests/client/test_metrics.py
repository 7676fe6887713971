"""The metrics endpoint's text becomes numbers."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import gptport_client
from gptport_client import Client, ProtocolError, Sample
from gptport_client._metrics import read_metrics

TEXT = r"""
# HELP gptport_running sequences that run
# TYPE gptport_running gauge
gptport_running{model="smollm2",version="1"} 3
gptport_running{model="other",version="1"} 4 1395066363000
nv_cpu_utilization 0.25
odd{path="C:\\a \"b\",\nc"} +Inf
"""


def test_samples_and_totals():
    metrics = read_metrics(TEXT)
    assert metrics.total("gptport_running") == 7
    assert metrics.total("gptport_running", model="smollm2") == 3
    assert metrics.total("nothing") == 0
    assert metrics.samples[-1] == Sample("odd", {"path": 'C:\\a "b",\nc'}, float("inf"))


def test_what_is_not_prometheus_is_a_protocol_error():
    with pytest.raises(ProtocolError, match="<html>"):
        read_metrics("<html>")


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, *_):
        pass


def test_they_come_from_the_metrics_url():
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(model="toy", metrics_url=f"{url}/metrics") as client:
            assert client.metrics() == read_metrics(TEXT)
        with Client(model="toy", metrics_url=f"{url}/x") as client, pytest.raises(gptport_client.ServerError):
            client.metrics()
        server.shutdown()
    with Client(model="toy", metrics_url=url) as client, pytest.raises(gptport_client.ConnectionError):
        client.metrics()
