"""One client of the soak test: asks again and again, in every way, until it is told to end; and leaves now and then.

python tests/e2e/soak_client.py HTTP_URL GRPC_URL CASES.json SEED

Prints a line for each request: how it was asked and how it ended, `wrong` with what was expected if it is not as alone.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptport_client import Client

MODEL = "smollm2"
SECONDS = 120


class Soaker:
    """Asks for the cases, in the ways below."""

    def __init__(self, http_url: str, client: Client, chance: random.Random) -> None:
        self._host = urlsplit(http_url).netloc
        self._client = client
        self._chance = chance
        self.ways = {
            self.answer: 3,
            self.stream: 3,
            self.grpc: 3,
            self.leave: 2,
            self.leave_grpc: 2,
            self.run_out_of_time: 1,
        }

    def answer(self, case: dict[str, Any]) -> str:
        with self._asked("generate", case["body"]) as response:
            return same(case, json.loads(response.read()))

    def stream(self, case: dict[str, Any]) -> str:
        with self._asked("generate_stream", case["body"] | {"stream": True}) as response:
            return same(case, joined(response))

    def grpc(self, case: dict[str, Any]) -> str:
        body = case["body"]
        if "plain" not in case:
            return self.stream(case)
        options = {
            name: body[name]
            for name in ("max_tokens", "temperature", "top_k", "top_p", "seed")
            if name in body
        }
        result = self._client.generate(body["text_input"], stop=body.get("stop_words", ()), **options)
        return same(case, {"text_output": result.text, "finish_reason": result.finish_reason})

    def leave(self, case: dict[str, Any]) -> str:
        with self._asked("generate_stream", case["body"] | {"stream": True}) as response:
            for _ in range(self._chance.randrange(12)):
                response.readline()
        return "left"

    def leave_grpc(self, case: dict[str, Any]) -> str:
        stream = self._client.stream(case["body"]["text_input"], max_tokens=case["body"]["max_tokens"])
        for _, _ in zip(range(self._chance.randrange(6)), stream, strict=False):
            pass
        stream.close()
        return "left"

    def run_out_of_time(self, case: dict[str, Any]) -> str:
        """What is there when the time is over begins the answer that was given alone.

        Half a character may end it, and so may the beginning of a stop string, which is held back until then.
        """
        with self._asked("generate", case["body"] | {"timeout": self._chance.uniform(0.01, 2)}) as response:
            found = json.loads(response.read())
        if found["finish_reason"] != "timeout":
            return same(case, found)
        alone, text = case["expected"]["text_output"], found["text_output"].rstrip("\ufffd")
        begins = (f"{alone}{word}".startswith(text) for word in ("", *case["body"].get("stop_words", ())))
        return "timeout" if any(begins) else wrong(case, found)

    @contextlib.contextmanager
    def _asked(self, path: str, body: dict[str, Any]) -> Any:
        with contextlib.closing(http.client.HTTPConnection(self._host, timeout=SECONDS)) as connection:
            connection.request("POST", f"/v2/models/{MODEL}/{path}", json.dumps(body))
            yield connection.getresponse()


def joined(response: Any) -> dict[str, Any]:
    events = [json.loads(line[6:]) for line in response if line.startswith(b"data: ")]
    if "error" in events[-1]:
        return events[-1]
    return {**events[-1], "text_output": "".join(event["text_output"] for event in events)}


def same(case: dict[str, Any], found: dict[str, Any]) -> str:
    expected = case["expected"]
    return "as alone" if all(found.get(name) == expected[name] for name in expected) else wrong(case, found)


def wrong(case: dict[str, Any], found: dict[str, Any]) -> str:
    return "wrong " + json.dumps({"body": case["body"], "expected": case["expected"], "found": found})


def main(http_url: str, grpc_url: str, cases_file: str, seed: str) -> None:
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    cases = json.loads(Path(cases_file).read_text(encoding="utf-8"))
    chance = random.Random(int(seed))
    with Client(grpc_url, model=MODEL) as client:
        soaker = Soaker(http_url, client, chance)
        while not ends:
            (way,) = chance.choices(list(soaker.ways), list(soaker.ways.values()))
            case = chance.choice(cases)
            try:
                ended = way(case)
            except Exception as error:
                ended = wrong(case, {"error": repr(error)})
            print(way.__name__, ended, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
