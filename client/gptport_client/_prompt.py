"""A prompt: a text, or the ids of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from gptport_client._errors import InvalidRequest
from gptport_client._params import INT32_MAX, check_integer, check_text

Prompt: TypeAlias = str | Sequence[int]


def check_prompt(prompt: Prompt) -> str | tuple[int, ...]:
    """The prompt as a str or a tuple of ints.

    Raises:
        InvalidRequest: empty, not Unicode, or not token ids.
    """
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        return prompt
    if isinstance(prompt, (bytes, bytearray, memoryview)):
        raise InvalidRequest(f"prompt is {type(prompt).__name__}; decode it to a str, or give token ids")
    try:
        ids = list(prompt)
    except TypeError as error:
        raise InvalidRequest(
            f"prompt is a {type(prompt).__name__}; give a str or a sequence of token ids"
        ) from error
    if not ids:
        raise InvalidRequest("prompt has no tokens; give at least one token id")
    for index, token in enumerate(ids):
        check_integer(f"prompt[{index}]", token, 0, INT32_MAX)
    return tuple(int(token) for token in ids)
