"""A prompt: a text, the ids of its tokens, or the messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from gptport_client._errors import InvalidRequest
from gptport_client._params import INT32_MAX, check_integer, check_text

Prompt: TypeAlias = str | Sequence[int]
Message: TypeAlias = Mapping[str, str]


CheckedPrompt: TypeAlias = str | tuple[int, ...]


def check_prompt(prompt: Prompt) -> CheckedPrompt:
    """The prompt as a str or a tuple of ints.

    Raises:
        InvalidRequest: empty, not Unicode, or not token ids.
    """
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        return prompt
    return check_token_ids("prompt", prompt)


def check_token_ids(field: str, ids: Sequence[int]) -> tuple[int, ...]:
    """The ids as a tuple of ints.

    Raises:
        InvalidRequest: empty, or not token ids.
    """
    if isinstance(ids, (bytes, bytearray, memoryview, str)):
        raise InvalidRequest(f"{field} is {type(ids).__name__}; decode it to a str, or give token ids")
    try:
        found = list(ids)
    except TypeError as error:
        raise InvalidRequest(
            f"{field} is a {type(ids).__name__}; give a str or a sequence of token ids"
        ) from error
    if not found:
        raise InvalidRequest(f"{field} has no tokens; give at least one token id")
    for index, token in enumerate(found):
        check_integer(f"{field}[{index}]", token, 0, INT32_MAX)
    return tuple(int(token) for token in found)


def check_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages as plain dicts.

    Raises:
        InvalidRequest: there are none, or one is not an object with the texts `role` and `content`.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest(
            'messages is empty or no list; give a list such as [{"role": "user", "content": "Hello"}]'
        )
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InvalidRequest(f"messages[{index}] is a {type(message).__name__}; give a dict")
        check_text(f"messages[{index}]['role']", message.get("role", ""))
        content = message.get("content")
        if content != "":
            check_text(f"messages[{index}]['content']", content)
    return [dict(message) for message in messages]
