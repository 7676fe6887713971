"""What the gateway refuses, and how it says so: to whom has no key, for what is wrong, and for what fails behind it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("starlette")

from gptport_gateway import Keys  # noqa: E402

PROMPT = "The quick brown"
MESSAGES = [{"role": "user", "content": "Hi"}]
GREEDY = {"model": "toy", "temperature": 0, "max_tokens": 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"n": 0}, "n is 0"),
        ({"n": 129}, "at most 128"),
        ({"stop": [""]}, r"stop\[0\] is empty"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported"),
        ({"extra_body": {"top": 1}}, "top is not supported"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "tokens"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_wrong_request_is_refused_with_its_reason(ask, arguments, message, stream):
    asked = {**GREEDY, "messages": MESSAGES, "stream": stream, **arguments}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask.chat.completions.create(**asked)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"model": "toy"}', b'{"prompt": "a"}']
)
def test_what_is_no_request_is_refused(serve, body):
    request = urllib.request.Request(f"{serve()}/v1/completions", body)
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        urllib.request.urlopen(request)
    assert json.loads(caught.value.read())["error"]["message"]


def test_a_request_that_is_too_large_is_refused(serve):
    request = urllib.request.Request(f"{serve()}/v1/completions", b" " * (9 * 2**20))
    with pytest.raises((urllib.error.HTTPError, ConnectionError)):
        urllib.request.urlopen(request)


def test_an_error_on_the_way_is_the_last_event(ask, toy):
    toy.error_after = (2, "CUDA out of memory")
    events = ask.completions.create(prompt=PROMPT, stream=True, **GREEDY)
    with pytest.raises(openai.APIError, match="CUDA out of memory"):
        list(events)
    with pytest.raises(openai.InternalServerError, match="CUDA out of memory"):
        ask.completions.create(prompt=PROMPT, **GREEDY)


@pytest.mark.parametrize(
    ("text", "error", "status"),
    [
        ("Exceeds maximum queue size", openai.RateLimitError, 429),
        ("model is not ready", openai.InternalServerError, 503),
    ],
)
def test_a_status_says_whether_to_come_again(ask, toy, text, error, status):
    toy.error_after = (0, text)
    with pytest.raises(error) as caught:
        ask.completions.create(prompt=PROMPT, **GREEDY)
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/v1/nothing", "GET", 404), ("/v1/completions", "GET", 405)]
)
def test_what_is_not_there_is_refused_as_json(serve, path, method, status):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(serve() + path, method=method))
    assert caught.value.code == status
    assert f"{method} {path} is nothing here" in json.loads(caught.value.read())["error"]["message"]


def test_keys(serve):
    url = f"{serve(['right', 'other'])}/v1"
    for key in ("right", "other"):
        assert openai.OpenAI(base_url=url, api_key=key).models.list().data
    with pytest.raises(openai.AuthenticationError, match="API key is missing or wrong"):
        openai.OpenAI(base_url=url, api_key="wrong").models.list()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/models")


def test_a_file_of_keys(tmp_path):
    (tmp_path / "keys").write_text("# ours\n\n one \ntwo\n")
    keys = Keys.from_file(tmp_path / "keys")
    assert [keys.admit(f"Bearer {key}") for key in ("one", "two", "# ours", "")] == [True, True, False, False]
    assert not keys.admit("one")
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ValueError, match="has no key"):
        Keys.from_file(tmp_path / "keys")
