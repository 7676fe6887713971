"""`gptport serve --trace`: a collector gets a span of each request, within the trace that the client names."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serve_command import PATIENCE

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def collector():
    """Takes spans over HTTP as an OpenTelemetry collector does: its URL, and what it has got."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever).start()
        yield f"http://127.0.0.1:{listening.server_port}/v1/traces", got
        listening.shutdown()


def test_a_request_is_traced(command, repository, collector):
    url, got = collector
    server = command(repository, "--model=gpt2-tiny", f"--trace={url}")
    server.wait_until_ready()
    asked = urllib.request.Request(
        f"{server.address.http_url}/v2/models/gpt2-tiny/generate_stream",
        b'{"text_input": "Hello", "max_tokens": 8, "stream": true}',
        {"traceparent": f"00-{TRACE}-{PARENT}-01"},
    )
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        answer.read()
    end = time.monotonic() + PATIENCE
    spans = []
    while not {"InferRequest", "gpt2-tiny"} <= {span["name"] for span in spans} and time.monotonic() < end:
        time.sleep(0.1)  # Triton collects spans for some seconds
        resources = [resource for body in [*got] for resource in json.loads(body)["resourceSpans"]]
        spans = [span for each in resources for scope in each["scopeSpans"] for span in scope["spans"]]
    whole = next(span for span in spans if span["name"] == "InferRequest")
    assert (whole["traceId"], whole["parentSpanId"]) == (TRACE, PARENT)
    assert "INFER_RESPONSE_COMPLETE" in {event["name"] for event in whole["events"]}
    assert "gpt2-tiny" in {span["name"] for span in spans}
