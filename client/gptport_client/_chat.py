"""An answer to a conversation: its prompt has to be made first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptport_client._chat_template import CONFIG_FILE, TEMPLATE_FILE, ChatTemplate, read_chat_template
from gptport_client._errors import Cancelled, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow, Pieces
    from gptport_client._prompt import Message
    from gptport_client._served import ServedModel
    from gptport_client._stream import Answer
    from gptport_client._tokenizer_source import TokenizerSource


class Chats:
    """Makes prompts of conversations with the template and the tokenizer of a text model."""

    def __init__(self, model: ServedModel, tokenizers: TokenizerSource) -> None:
        self._model = model
        self._tokenizers = tokenizers
        self._templates: dict[str, ChatTemplate] = {}  # by the tokenizer's hash

    def prompt(
        self, messages: Sequence[Message], deadline: Deadline, request_id: str
    ) -> Flow[tuple[int, ...]]:
        """The ids of the tokens that the assistant's answer goes on from."""
        config = yield from self._model.config(self._model.name, deadline, request_id)
        tokenizer = yield from self._tokenizers.get(config, deadline, request_id)
        key = config.tokenizer_sha256
        if key not in self._templates:
            self._templates[key] = yield from self._fetch(deadline, request_id)
        # The template writes the special tokens itself.
        return tokenizer.encode(self._templates[key].render(messages), special_tokens=False)

    def _fetch(self, deadline: Deadline, request_id: str) -> Flow[ChatTemplate]:
        config = yield from self._model.file(CONFIG_FILE, deadline, request_id)
        try:
            template = yield from self._model.file(TEMPLATE_FILE, deadline, request_id)
        except InvalidRequest:  # it may stand in the other file
            return read_chat_template(None, config)
        return read_chat_template(template, config)


class ChatAnswer:
    """The answer that `begin` makes of the ids that `prompt` returns."""

    def __init__(
        self,
        prompt: Flow[tuple[int, ...]],
        begin: Callable[[tuple[int, ...]], Answer],
        request_id: str,
    ) -> None:
        self.request_id = request_id
        self._prompt = prompt
        self._begin = begin
        self._answer: Answer | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """See `Answer`."""
        self._cancelled = True
        if self._answer is not None:
            self._answer.cancel()

    def pieces(self) -> Pieces:
        """See `Answer`."""
        ids = yield from self._prompt
        if self._cancelled:
            raise Cancelled("the stream was closed", self.request_id)
        self._answer = self._begin(ids)
        yield from self._answer.pieces()
