"""A conversation whose last message the answer goes on with, as transformers' `continue_final_message` has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gptport_backend.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

# Put behind the message and looked for in what the template makes of it. The space tells whether the template trims.
MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class OpenMessage:
    """Marks the end of the last of `messages`, in place, for the template to be cut there.

    Args:
        messages: a conversation.
        names: of the fields of its last message that the answer goes on with: all have the same value.
    """

    def __init__(self, messages: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        last, self._name = messages[-1], names[0]
        found = last.get(self._name)
        if isinstance(found, list):
            parts = [each for each in reversed(found) if isinstance(each, dict) and "text" in each]
            part = parts[0] if parts else {}
            found = part.get("text")
            part["text"] = f"{found}{MARK}"
        else:
            last.update(dict.fromkeys(names, f"{found}{MARK}"))
        if not isinstance(found, str):
            raise RequestError(
                f"messages have no text as {self._name} in the last one, which continue_final_message goes on with"
            )
        self._text = found

    def cut(self, prompt: str) -> str:
        """The `prompt` that the template made, up to the end of the message. RequestError if the message is not in it."""
        place = prompt.rfind(MARK.rstrip())
        if place < 0 or self._text.strip() not in prompt:
            raise RequestError(
                f"messages cannot be gone on with: the model's chat template does not show the last one's {self._name} as it is; "
                "leave continue_final_message out"
            )
        trimmed = not prompt.startswith(MARK, place)
        return prompt[:place].rstrip() if trimmed else prompt[:place]
