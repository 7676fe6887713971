"""Conversations go to the server as they are; what is no conversation does not."""

from __future__ import annotations

import json

import pytest

from gptport_client import InvalidRequest
from toy_triton import read_inputs, render

MESSAGES = [{"role": "system", "content": ""}, {"role": "user", "content": "Grüße, 世界!"}]


def test_the_server_puts_messages_into_the_template(client, toy):
    assert client.chat(MESSAGES, max_tokens=9).text == client.generate(render(MESSAGES), max_tokens=9).text
    sent = read_inputs(toy.requests[0])
    assert json.loads(sent["messages"][0]) == MESSAGES
    assert "text_input" not in sent


def test_a_chat_in_pieces(client):
    pieces = [chunk.text for chunk in client.chat_stream(MESSAGES, max_tokens=9)]
    assert "".join(pieces) == client.chat(MESSAGES, max_tokens=9).text


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("Hello", "messages is empty or no list"),
        (["Hello"], r"messages\[0\] is a str; give a dict"),
        ([{"content": "a"}], r"messages\[0\]\['role'\] is empty"),
        ([{"role": "user"}], r"messages\[0\]\['content'\] is a NoneType"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\]\['content'\] is not valid Unicode"),
    ],
)
def test_what_is_no_conversation_is_refused(client, toy, messages, message):
    with pytest.raises(InvalidRequest, match=message):
        client.chat(messages)
    assert not toy.requests
