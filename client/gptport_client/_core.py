"""What both clients do, but for the waiting: check what was asked for, and make the answer or the flow that answers."""

from __future__ import annotations

import math
import uuid
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from gptport_client._client_loop import ClientAnswer
from gptport_client._deadline import Deadline
from gptport_client._errors import DeadlineExceeded, GptportError, InvalidRequest, ServerNotReady
from gptport_client._model import ModelInfo, step_model
from gptport_client._params import SamplingParams, check_timeout, sampling_params
from gptport_client._processors import Processor, check_processors
from gptport_client._prompt import Prompt, check_prompt
from gptport_client._served import ASK_TIMEOUT, ServedModel
from gptport_client._server_loop import ServerAnswer
from gptport_client._tokenizer import TokenizerCache, read_tokenizer
from gptport_client._tokenizer_source import TokenizerSource
from gptport_client._wire import text_request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import tokenizers

    from gptport_client._flow import Flow
    from gptport_client._params import SamplingOptions
    from gptport_client._retry import Retry
    from gptport_client._stream import Answer
    from gptport_client._transport import AnyTransport

Loop: TypeAlias = Literal["server", "client"]

POLL_INTERVAL = 0.1  # seconds


class Core:
    """One model on one server, over a transport that blocks or one that is awaited."""

    def __init__(
        self,
        transport: AnyTransport,
        model: str,
        tokenizer: str | Path | tokenizers.Tokenizer | None,
        retry: Retry,
    ) -> None:
        given = None if tokenizer is None else read_tokenizer(tokenizer)
        self.transport = transport
        self._model = ServedModel(transport, model, retry)
        self._tokenizers = TokenizerSource(self._model, given, TokenizerCache())

    def answer(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        options: SamplingOptions,
        loop: Loop,
        processors: Sequence[Processor],
        timeout: float | None,
    ) -> Answer:
        """The answer to a prompt; the server's loop has begun with it."""
        checked = check_prompt(prompt)
        chosen = sampling_params(params, options)
        callables = check_processors(processors)
        check_timeout(timeout)
        _check_loop(loop)
        deadline, request_id = Deadline(timeout), uuid.uuid4().hex
        if loop == "client":
            return ClientAnswer(
                self._model, self._tokenizers, checked, chosen, callables, deadline, request_id
            )
        if callables:
            raise InvalidRequest("processors run in the client's own loop; give loop='client' with them")
        return ServerAnswer(
            self._model, text_request(self._model.name, request_id, checked, chosen, stream=True), deadline
        )

    def wait_until_ready(self, timeout: float | None, loop: Loop) -> Flow[None]:
        """Return once the server takes requests for the model that `loop` uses."""
        check_timeout(timeout)
        _check_loop(loop)
        model = self._model.name if loop == "server" else step_model(self._model.name)
        return self._wait_until_ready(model, timeout)

    def models(self) -> Flow[tuple[ModelInfo, ...]]:
        """The models in the server's repository."""
        index = yield partial(self.transport.repository, ASK_TIMEOUT)
        return tuple(
            ModelInfo(entry.name, entry.version, entry.state == "READY", entry.reason) for entry in index
        )

    def _wait_until_ready(self, model: str, timeout: float | None) -> Flow[None]:
        deadline, last = Deadline(timeout), "no answer yet"
        while deadline.allows(0):
            try:
                reason = yield from self._unready(model, min(deadline.remaining() or math.inf, 1.0))
            except DeadlineExceeded:
                break
            if reason is None:
                return
            last = reason
            yield partial(self.transport.sleep, POLL_INTERVAL)
        raise ServerNotReady(f"{self.transport.url} is not ready for {model!r} after {timeout} s: {last}")

    def _unready(self, model: str, timeout: float) -> Flow[str | None]:
        try:
            if not (yield partial(self.transport.server_ready, timeout)):
                return "the server is starting or ending"
            if not (yield partial(self.transport.model_ready, model, timeout)):
                return "the model is loading, failed to load or does not exist; models() and the log say more"
        except InvalidRequest:  # the client is closed
            raise
        except GptportError as error:
            return str(error)
        return None


def _check_loop(loop: str) -> None:
    if loop not in ("server", "client"):
        raise InvalidRequest(f"loop is {loop!r}; give 'server' or 'client'")
