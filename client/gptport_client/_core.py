"""What both clients do, but for the waiting: check what was asked for, and make the answer or the flow that answers."""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from gptport_client._beam_search import Beam, BeamOptions, BeamSearch
from gptport_client._chat import ChatAnswer, Chats
from gptport_client._client_loop import ClientAnswer
from gptport_client._deadline import Deadline
from gptport_client._errors import (
    DeadlineExceeded,
    GptportError,
    InvalidRequest,
    ProtocolError,
    ServerNotReady,
)
from gptport_client._many import Item, Request
from gptport_client._metrics import Metrics, read_metrics
from gptport_client._model import ModelConfig, ModelInfo, kv_model, step_model
from gptport_client._params import (
    MOST_ANSWERS,
    SamplingParams,
    check_integer,
    check_text,
    check_timeout,
    sampling_params,
)
from gptport_client._processors import Processor, check_processors
from gptport_client._prompt import CheckedPrompt, Message, Prompt, check_messages, check_prompt
from gptport_client._served import ASK_TIMEOUT, TRANSPORTS, ServedModel, StepTransport
from gptport_client._server_loop import ServerAnswer
from gptport_client._session import SessionFlows
from gptport_client._text import TextOffsets, whole_text
from gptport_client._tokenizer import TokenizerCache, read_tokenizer
from gptport_client._tokenizer_source import TokenizerSource
from gptport_client._wire import ADAPTERS_FILE, read_adapters, text_request

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import tokenizers

    from gptport_client._flow import Flow
    from gptport_client._params import SamplingOptions
    from gptport_client._retry import Retry
    from gptport_client._stream import Answer
    from gptport_client._tokenizer import Tokenizer
    from gptport_client._transport import AnyTransport

Loop: TypeAlias = Literal["server", "client"]

POLL_INTERVAL = 0.1  # seconds


@dataclass(frozen=True)
class Asked:
    """How a text is asked for, checked.

    Raises:
        InvalidRequest: by `checked`, whatever is wrong.
    """

    params: SamplingParams
    loop: Loop
    processors: tuple[Processor, ...]
    timeout: float | None
    n: int = 1
    transport: StepTransport = "auto"

    @classmethod
    def checked(
        cls,
        params: SamplingParams | None,
        options: SamplingOptions,
        timeout: float | None,
        loop: Loop = "server",
        processors: Sequence[Processor] = (),
        n: int = 1,
        transport: StepTransport = "auto",
    ) -> Asked:
        """From the arguments of the clients' methods."""
        check_timeout(timeout)
        _check_loop(loop)
        callables = check_processors(processors)
        _check_transport(transport)
        if loop == "server":
            _check_for_server(callables, transport)
        checked = sampling_params(params, options)
        if checked.for_the_server and loop == "client":
            raise InvalidRequest(
                f"{checked.for_the_server[0]} is for the server's loop; leave out loop='client'"
            )
        check_integer("n", n, 1, MOST_ANSWERS)
        if n > 1 and loop == "client":
            raise InvalidRequest(
                f"n is {n}, which is for the server's loop; here, ask for each answer with a seed of its own"
            )
        return cls(checked, loop, callables, timeout, n, transport)


class Core:
    """One model on one server, over a transport that blocks or one that is awaited."""

    def __init__(
        self,
        transport: AnyTransport,
        model: str,
        tokenizer: str | Path | tokenizers.Tokenizer | None,
        retry: Retry,
        metrics_url: str,
    ) -> None:
        given = None if tokenizer is None else read_tokenizer(tokenizer)
        self.transport = transport
        self._metrics_url = metrics_url
        self._model = ServedModel(transport, model, retry)
        self._tokenizers = TokenizerSource(self._model, given, TokenizerCache())
        self._tokenizer = given
        self._chats = Chats(self._model, self._tokenizers)

    def generate(self, prompt: Prompt, asked: Asked) -> Answer:
        """The answer to a prompt; the server's loop has begun with it."""
        return self._begin(check_prompt(prompt), asked, Deadline(asked.timeout), _request_id())

    def chat(self, messages: Sequence[Message], asked: Asked) -> Answer:
        """The answer to a conversation."""
        checked, deadline, request_id = check_messages(messages), Deadline(asked.timeout), _request_id()
        prompt = self._chats.prompt(checked, deadline, request_id)
        return ChatAnswer(prompt, lambda ids: self._begin(ids, asked, deadline, request_id), request_id)

    def one_of_many(self, item: Item, asked: Asked) -> Answer:
        """The answer to a prompt or a request."""
        if not isinstance(item, Request):
            return self.generate(item, asked)
        own = asked if item.params is None else replace(asked, params=item.params)
        if item.prompt is not None:
            return self.generate(item.prompt, own)
        return self.chat(item.messages or (), own)

    def model_config(self) -> Flow[ModelConfig]:
        """What the text model's configuration says."""
        return self._model.config(self._model.name, Deadline(ASK_TIMEOUT))

    def tokenize(self, text: str) -> Flow[tuple[int, ...]]:
        """The ids of a text's tokens."""
        check_text("text", text)
        return (yield from self._own_tokenizer()).encode(text)

    def detokenize(self, token_ids: Sequence[int]) -> Flow[str]:
        """The text of token ids."""
        return (yield from self._own_tokenizer()).decode(token_ids)

    def token_texts(self, token_ids: Sequence[int]) -> Flow[tuple[str, ...]]:
        """Each token alone as text."""
        tokenizer = yield from self._own_tokenizer()
        return tuple(map(tokenizer.text_of, token_ids))

    def text_offsets(self, prompt: Sequence[int]) -> Flow[TextOffsets]:
        """Where the tokens behind a prompt are in their text."""
        return TextOffsets((yield from self._own_tokenizer()), prompt)

    def adapters(self) -> Flow[tuple[str, ...]]:
        """The LoRA adapters of the text model."""
        try:
            content = yield from self._model.file(ADAPTERS_FILE, Deadline(ASK_TIMEOUT), "")
        except InvalidRequest:  # its backend is older than the list
            return ()
        return read_adapters(content)

    def session(self, transport: StepTransport) -> SessionFlows:
        """A sequence on the step model."""
        _check_transport(transport)
        return SessionFlows(self._model, _request_id(), transport)

    def beam_search(
        self,
        prompt: Prompt,
        options: BeamOptions,
        processors: Sequence[Processor],
        timeout: float | None,
        loop: Loop,
        transport: StepTransport,
    ) -> Flow[tuple[Beam, ...]]:
        """The likeliest continuations of a prompt."""
        checked, callables = check_prompt(prompt), check_processors(processors)
        check_timeout(timeout)
        _check_loop(loop)
        _check_transport(transport)
        if loop == "client":
            return self._beam_search(checked, options, callables, Deadline(timeout), transport)
        _check_for_server(callables, transport)
        if options.beams == 1:
            raise InvalidRequest(
                "beams is 1; give 2 or more with loop='server', or generate, which is the same"
            )
        return self._server_beams(checked, options, Deadline(timeout), _request_id())

    def score(
        self, text: Prompt, top: int, loop: Loop, timeout: float | None, transport: StepTransport
    ) -> Answer:
        """The answer that has nothing but the score of a text."""
        check_integer("top", top, 0, 20)
        params = SamplingParams(max_tokens=0, prompt_logprobs=top)
        return self.generate(text, Asked.checked(params, {}, timeout, loop, transport=transport))

    def wait_until_ready(self, timeout: float | None, loop: Loop) -> Flow[None]:
        """Return once the server takes requests for the model that `loop` uses."""
        check_timeout(timeout)
        _check_loop(loop)
        name = self._model.name
        models = (name,) if loop == "server" else (step_model(name), kv_model(name))
        return self._wait_until_ready(models, timeout)

    def models(self) -> Flow[tuple[ModelInfo, ...]]:
        """The models in the server's repository."""
        index = yield partial(self.transport.repository, ASK_TIMEOUT)
        return tuple(
            ModelInfo(entry.name, entry.version, entry.state == "READY", entry.reason) for entry in index
        )

    def metrics(self) -> Flow[Metrics]:
        """What the server counts and measures."""
        content = yield partial(self.transport.fetch, self._metrics_url, ASK_TIMEOUT)
        return read_metrics(content.decode(errors="replace"))

    def _own_tokenizer(self) -> Flow[Tokenizer]:
        if self._tokenizer is None:
            config = yield from self.model_config()
            self._tokenizer = yield from self._tokenizers.get(config, Deadline(ASK_TIMEOUT), "")
        return self._tokenizer

    def _begin(self, prompt: CheckedPrompt, asked: Asked, deadline: Deadline, request_id: str) -> Answer:
        if asked.loop == "client":
            return ClientAnswer(
                self._model,
                self._tokenizers,
                prompt,
                asked.params,
                asked.processors,
                asked.transport,
                deadline,
                request_id,
            )
        request = text_request(
            self._model.name,
            request_id,
            prompt,
            asked.params,
            stream=True,
            n=asked.n,
            timeout=deadline.remaining(request_id),
        )
        return ServerAnswer(self._model, request, deadline, asked.n)

    def _beam_search(
        self,
        prompt: CheckedPrompt,
        options: BeamOptions,
        processors: Sequence[Processor],
        deadline: Deadline,
        transport: StepTransport,
    ) -> Flow[tuple[Beam, ...]]:
        request_id = _request_id()
        config = yield from self._model.step_config(deadline, request_id, transport, options.beams)
        tokenizer = yield from self._tokenizers.get(config, deadline, request_id)
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        search = BeamSearch(self.transport, config, ids, options, processors, deadline, request_id)
        found = yield from search.run()
        return tuple(
            Beam(
                whole_text(tokenizer, ids, each.token_ids),
                each.token_ids,
                each.logprob,
                "stop" if each.ended else "length",
            )
            for each in found
        )

    def _server_beams(
        self, prompt: CheckedPrompt, options: BeamOptions, deadline: Deadline, request_id: str
    ) -> Flow[tuple[Beam, ...]]:
        request = text_request(
            self._model.name,
            request_id,
            prompt,
            SamplingParams(max_tokens=options.max_tokens),
            stream=False,
            n=options.beams,
            timeout=deadline.remaining(request_id),
            beams=options,
        )
        beams = []
        for each in (yield from self._model.answers(request, deadline)):
            if each.finish_reason is None or each.logprob is None:
                raise ProtocolError(
                    "an answer of beam search came without its reason or cum_log_probs", request_id
                )
            beams.append(Beam(each.text, each.token_ids, each.logprob, each.finish_reason))
        if not beams:
            raise ProtocolError("the server sent no answer; its log may say why", request_id)
        return tuple(beams)

    def _wait_until_ready(self, models: tuple[str, ...], timeout: float | None) -> Flow[None]:
        """Until one of them is."""
        deadline, last = Deadline(timeout), "no answer yet"
        while deadline.allows(0):
            try:
                reason = yield from self._unready(models, min(deadline.remaining() or math.inf, 1.0))
            except DeadlineExceeded:
                break
            if reason is None:
                return
            last = reason or last
            yield partial(self.transport.sleep, POLL_INTERVAL)
        raise ServerNotReady(f"{self.transport.url} is not ready for {models[0]!r} after {timeout} s: {last}")

    def _unready(self, models: tuple[str, ...], timeout: float) -> Flow[str | None]:
        try:
            if not (yield partial(self.transport.server_ready, timeout)):
                return "the server is starting or ending"
            for model in models:
                if (yield partial(self.transport.model_ready, model, timeout)):
                    return None
        except InvalidRequest:  # the client is closed
            raise
        except DeadlineExceeded:  # what was said before still holds
            return ""
        except GptportError as error:
            return str(error)
        return "the model is loading, failed to load or does not exist; models() and the log say more"


def _check_for_server(processors: Sequence[Processor], transport: StepTransport) -> None:
    if processors:
        raise InvalidRequest("processors run in the client's own loop; give loop='client' with them")
    if transport != "auto":
        raise InvalidRequest(
            f"transport is {transport!r}, which is for the client's own loop; give loop='client' with it"
        )


def _check_transport(transport: str) -> None:
    if transport not in TRANSPORTS:
        raise InvalidRequest(f"transport is {transport!r}; give one of {', '.join(map(repr, TRANSPORTS))}")


def _check_loop(loop: str) -> None:
    if loop not in ("server", "client"):
        raise InvalidRequest(f"loop is {loop!r}; give 'server' or 'client'")


def _request_id() -> str:
    return uuid.uuid4().hex
