"""Triton's log tells how each request ended, once it is asked to."""

from __future__ import annotations

import json
import re
import time
import urllib.request

import pytest

from gptport.server import running
from gptport_client import Client, InvalidRequest
from serve_command import PATIENCE

MODEL = "gpt2-tiny"


def set_verbosity(server, level: int) -> None:
    body = json.dumps({"log_verbose_level": level}).encode()
    urllib.request.urlopen(f"{server.address.http_url}/v2/logging", body, timeout=PATIENCE).close()


def test_the_log_tells_how_a_request_ended(repository, capfd):
    with (
        running(repository, [MODEL], show_log=True) as server,
        Client(server.address.grpc_url, model=MODEL) as client,
    ):
        set_verbosity(server, 1)
        logged = client.generate("Hello", max_tokens=5, ignore_eos=True)
        with pytest.raises(InvalidRequest):
            client.generate([5] * 5000)
        score = client.score("Hello there")
        log, end = "", time.monotonic() + PATIENCE  # another process writes it
        while "0 out, first token none" not in log and time.monotonic() < end:
            time.sleep(0.1)
            log += capfd.readouterr().err
        set_verbosity(server, 0)
        unlogged = client.generate("Hello", max_tokens=2)
    log += capfd.readouterr().err
    assert unlogged.request_id not in log
    inside = logged.usage.prompt_tokens
    name = f"{MODEL}, version 1"
    ended = rf"'{logged.request_id}' of {name}: length, {inside} tokens in, 5 out, first token [\d.]+ s, after [\d.]+ s"
    assert re.search(ended, log)
    assert re.search(rf"of {name}: error: the prompt has 5000 tokens; .* after [\d.]+ s", log)
    assert f"length, {len(score.token_ids)} tokens in, 0 out, first token none" in log
