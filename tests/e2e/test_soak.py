"""Mixed load for minutes, with clients that leave, run out of time or are killed: nothing is wrong, and nothing is left.

Two minutes with a few clients in `make test`; `make soak` runs it for half an hour with more of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import psutil
import pytest

from in_torch import PROMPTS

SHORT = 2.0
MINUTES = float(os.environ.get("SOAK_MINUTES", SHORT))
SEED = int(os.environ.get("SEED", "1"))
CLIENTS = 8 if MINUTES > SHORT else 3
WARM_UP = 0.25  # of the time
MOST_GROWTH = 20e6  # bytes
OWN_MEMORY = re.compile(r"^(?:RssAnon|RssShmem|VmSwap):\s+(\d+) kB$", re.MULTILINE)
REST_SECONDS = 100  # on a slow machine too, in which the engine gives back the memory of its cache
LONG = "The history of the town is long. " * 60


def cases() -> list[dict]:
    """Requests whose answers are always the same, because they are greedy or have a seed."""
    bodies = [{"text_input": prompt, "max_tokens": 24 + 8 * n} for n, prompt in enumerate(PROMPTS)]
    bodies += [{**body, "temperature": 0.9, "seed": 10 + n} for n, body in enumerate(bodies)]
    bodies += [
        {
            "text_input": LONG[:length] + "Then",
            "max_tokens": 12,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": length,
        }
        for length in (300, 900, 1900)
    ]
    bodies += [
        {"text_input": "1, 2, 3, 4, 5,", "max_tokens": 60, "stop_words": [word]} for word in (" 9", ", 1")
    ]
    plain = [{"body": body, "plain": True} for body in bodies]
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    others = [
        {"text_input": chat.format(text), "max_tokens": 48, "priority": priority}
        for priority, text in ((-1, "What is the capital of Italy?"), (1, "Tell me about " + LONG[:400]))
    ]
    others.append(
        {
            "text_input": "Hello",
            "max_tokens": 40,
            "ignore_eos": True,
            "repetition_penalty": 1.2,
            "priority": -2,
        }
    )
    others.append(
        {"text_input": "Hello", "max_tokens": 20, "min_p": 0.1, "temperature": 1.2, "seed": 4, "logprobs": 2}
    )
    return plain + [{"body": body} for body in others]


class Clients:
    """The processes of soak_client.py, and what they have said."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._arguments = arguments
        self._folder = folder
        self._running: list[subprocess.Popen] = []
        self._started = 0
        self.killed = 0

    def keep_up(self) -> None:
        while len(self._running) < CLIENTS:
            self._started += 1
            with (self._folder / f"{self._started}.log").open("wb") as log:
                command = [sys.executable, str(Path(__file__).with_name("soak_client.py"))]
                seed = str(SEED * 10_000 + self._started)
                self._running.append(
                    subprocess.Popen([*command, *self._arguments, seed], stdout=log, stderr=log)
                )

    def kill_one(self, chance: random.Random) -> None:
        victim = self._running.pop(chance.randrange(len(self._running)))
        victim.kill()
        victim.wait()
        self.killed += 1

    def end(self) -> None:
        for client in self._running:
            client.send_signal(signal.SIGTERM)
        for client in self._running:
            client.wait(180)
        self._running.clear()

    def ends(self) -> tuple[Counter[str], list[str]]:
        """How many requests ended in which way, and what was wrong; the last line of one that was killed may be half."""
        lines = [line for log in self._folder.glob("*.log") for line in log.read_text().splitlines()]
        wrong = [line for line in lines if " wrong " in line or "Error" in line]
        return Counter(line.partition(" ")[2] for line in lines if line not in wrong), wrong


@pytest.fixture
def soaked(command, repository, tmp_path):
    """A real `gptport serve`, and clients that know what it answers to each case alone."""
    server = command(repository, "--model=smollm2")
    server.wait_until_ready()
    known = []
    for case in cases():
        url = f"{server.address.http_url}/v2/models/smollm2/generate"
        with urllib.request.urlopen(url, json.dumps(case["body"]).encode(), timeout=120) as answer:
            found = json.loads(answer.read())
        known.append({**case, "expected": {name: found[name] for name in ("text_output", "finish_reason")}})
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(known))
    logs = tmp_path / "clients"
    logs.mkdir()
    clients = Clients([server.address.http_url, server.address.grpc_url, str(file)], logs)
    yield server, clients
    clients.end()


def load(clients: Clients, seconds: float, chance: random.Random) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        clients.keep_up()
        time.sleep(chance.uniform(1, 9))
        clients.kill_one(chance)
    clients.end()


def gauges(server) -> dict[str, float]:
    with urllib.request.urlopen(server.address.metrics_url, timeout=10) as answer:
        found = re.findall(r'^gptport_(\w+){model="smollm2"} (\S+)$', answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def at_rest(server) -> dict[str, float]:
    """The gauges, when the memory of the cache is given back or the time for that is over."""
    end = time.monotonic() + REST_SECONDS
    while time.monotonic() < end and gauges(server)["kv_cache_bytes"]:
        time.sleep(0.5)
    return gauges(server)


def kept(gauges: dict[str, float]) -> float:
    """Bytes of keys and values that are there on purpose, up to a limit."""
    return gauges["kv_cache_bytes"] + gauges["prefix_cache_bytes"]


def memory(server) -> int:
    """Bytes of the model's process, but for files': its share of a library's depends on who else has loaded that."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            if any("/smollm2/1/" in argument for argument in process.cmdline()):
                status = Path(f"/proc/{process.pid}/status").read_text()
                return sum(1024 * int(kilobytes) for kilobytes in OWN_MEMORY.findall(status))
    raise AssertionError("the process of the model is gone")


@pytest.mark.timeout(MINUTES * 60 + 600)
def test_nothing_is_wrong_and_nothing_is_left(soaked):
    server, clients = soaked
    chance = random.Random(SEED)
    load(clients, MINUTES * 60 * WARM_UP, chance)
    before = at_rest(server)
    base = memory(server) - kept(before)
    load(clients, MINUTES * 60 * (1 - WARM_UP), chance)
    after = at_rest(server)
    growth = memory(server) - kept(after) - base
    ended, wrong = clients.ends()
    counts = ", ".join(f"{count} {name}" for name, count in ended.most_common() if count > 1)
    print(  # noqa: T201
        f"\nsoak: {MINUTES:g} min, {counts}, {clients.killed} clients killed, {len(wrong)} wrong; "
        f"memory {growth / 1e6:+.1f} MB; {after['running']:g} running, {after['waiting']:g} waiting"
    )
    assert wrong == []
    assert (after["running"], after["waiting"]) == (0, 0)
    assert ended["as alone"] > 0
    assert growth < MOST_GROWTH
