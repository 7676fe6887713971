"""Whatever comes over HTTP is answered, and soon; whatever it was, the next good request is answered as ever.

The strategies know the table of parameters, so that most requests get past Triton's own checks. `make fuzz` sends 100,000.
"""

from __future__ import annotations

import http.client
import json
import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptport_backend.parameters import PARAMETERS, Parameter

REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "300"))
SECONDS = 100
MODEL = "gpt2-tiny"
GOOD = {"text_input": "Once upon a time", "max_tokens": 8}
MOST_TOKENS = 6  # so that what is taken ends soon

INT32, INT64 = 2**31, 2**63
NUMBERS = {
    "INT32": st.one_of(
        st.integers(-2, 300), st.sampled_from((-INT32, INT32 - 1, INT32, -INT64, INT64, 10**30))
    ),
    "UINT64": st.one_of(st.integers(0, 9), st.sampled_from((-1, 2 * INT64 - 1, 2 * INT64))),
    "FP32": st.one_of(
        st.floats(-3, 3),
        st.sampled_from((1e-45, 1e38, 1e39, 1e300, float("nan"), float("inf"), -float("inf"))),
    ),
    "BOOL": st.booleans(),
    "BYTES": st.one_of(
        st.text(max_size=12), st.sampled_from((" ", "\0", "é", "\U0001f600", "<|endoftext|>", "a" * 3000))
    ),
}
ANYTHING = st.recursive(
    st.one_of(st.none(), *NUMBERS.values()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def values(parameter: Parameter) -> st.SearchStrategy[Any]:
    """Of the right type most times, and of the right number: as JSON, which has no way to say float32."""
    one = NUMBERS[parameter.dtype]
    fitting = st.lists(one, max_size=4) if parameter.many else one
    return st.one_of(fitting, fitting, fitting, ANYTHING)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """What `generate` takes: a few parameters, a prompt most times, and seldom what is no parameter."""
    chosen = draw(st.lists(st.sampled_from(PARAMETERS), max_size=5, unique_by=lambda p: p.name))
    body = {parameter.name: draw(values(parameter)) for parameter in chosen}
    if draw(st.integers(0, 9)):
        body.setdefault("text_input", draw(st.text(min_size=1, max_size=20)))
    if not draw(st.integers(0, 19)):
        body[draw(st.text(max_size=8))] = draw(ANYTHING)
    return bounded(body)


def bounded(body: dict[str, Any]) -> dict[str, Any]:
    limit = body.get("max_tokens", MOST_TOKENS)
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or 0 < limit < INT32:
        limit = MOST_TOKENS
    return {**body, "max_tokens": limit}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    """Path and body; seldom the body is cut off or has a byte changed."""
    path = draw(st.sampled_from(("generate", "generate_stream")))
    sent = json.dumps(draw(bodies())).encode()
    if not draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(sent)))
        sent = sent[:place] + draw(st.binary(max_size=2)) + sent[place + draw(st.integers(0, 2)) :]
    return path, sent


@pytest.fixture(scope="module")
def post(server):
    """Send a body; status and answer."""

    def send(path: str, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(
            server.address.host, server.address.http_port, timeout=SECONDS
        )
        try:
            connection.request("POST", f"/v2/models/{MODEL}/{path}", body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    return send


@pytest.fixture(scope="module")
def as_ever(post):
    """What a good request is answered."""

    def ask() -> bytes:
        status, answer = post("generate", json.dumps(GOOD).encode())
        assert status == 200
        return answer

    return ask


@pytest.mark.timeout(600 + REQUESTS)
def test_whatever_comes_is_answered(post, as_ever, gauge, becomes):
    expected = as_ever()
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=REQUESTS,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(requests())
    def send(request: tuple[str, bytes]) -> None:
        status, answer = post(*request)
        statuses[status] += 1
        assert status in (200, 400, 500)
        assert status == 200 or b'"error"' in answer
        assert b"Traceback" not in answer
        assert b"engine failed" not in answer
        assert b"could not be taken" not in answer

    send()
    counts = ", ".join(f"{count} with {status}" for status, count in statuses.most_common())
    print(f"\nfuzz: {statuses.total()} requests answered, {counts}")  # noqa: T201
    becomes(0, gauge, "running", MODEL)
    becomes(0, gauge, "waiting", MODEL)
    assert as_ever() == expected
