"""The gateway as a server: its command and port, its health and page, clients that come together or go away."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from toy_checks import GREEDY, MESSAGES, PATIENCE, PROMPT

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from gptport.address import Address  # noqa: E402
from gptport.cli import main  # noqa: E402


def test_a_browser_that_goes_away_cancels(ask, toy):
    toy.delay, toy.eos_token_ids = 0.2, ""
    events = ask.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
    next(iter(events))
    events.close()
    assert toy.cancelled.wait(PATIENCE)


def test_a_browser_that_goes_away_before_the_answer_cancels(serve, toy):
    toy.delay, toy.eos_token_ids = 0.2, ""
    host, port = serve().removeprefix("http://").split(":")
    body = json.dumps({"model": "toy", "messages": MESSAGES}).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        while not toy.requests:
            time.sleep(0.01)
    assert toy.cancelled.wait(PATIENCE)


def test_a_port_that_is_taken_is_said_before_anything_else(toy, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["gateway", "--url", toy.url, "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert (
        said
        == f"gptport: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port\n"
    )


def test_health(serve, toy):
    url = serve()
    assert json.loads(urllib.request.urlopen(f"{url}/health").read()) == {"status": "ok"}
    toy.server.stop(0).wait()
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{url}/health")


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(serve):
    url = serve()
    page = urllib.request.urlopen(url)
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    text = page.read().decode()
    for name in re.findall(r'(?:src|href)="([^"]+)"', text):
        content = "" if name.startswith("data:") else urllib.request.urlopen(f"{url}/{name}").read().decode()
        assert "://" not in content + name


def test_many_at_once(serve, client):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as ask:
            prompts = [f"{number} {PROMPT}" for number in range(24)]
            answers = await asyncio.gather(
                *(ask.completions.create(prompt=prompt, **GREEDY) for prompt in prompts)
            )
            return {prompt: answer.choices[0].text for prompt, answer in zip(prompts, answers, strict=True)}

    url = serve()
    for prompt, text in asyncio.run(main()).items():
        assert text == client.generate(prompt, max_tokens=9).text


def test_the_command(toy, tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    port = Address.free().http_port
    command = ["gateway", "--url", toy.url, "--port", str(port), "--api-keys", str(tmp_path / "keys")]
    with subprocess.Popen(
        [sys.executable, "-m", "gptport", *command], stderr=subprocess.PIPE, text=True
    ) as process:
        assert f"http://127.0.0.1:{port}/" in process.stderr.readline()
        ask = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=8)
        try:
            assert [model.id for model in ask.models.list()] == ["toy"]
        finally:
            process.terminate()
        assert process.wait(PATIENCE) in (0, -15)
