"""One model on one server: how it is asked, and what it is asked beside text."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

from gptport_client._cuda_region import bindings
from gptport_client._errors import (
    GptportError,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    ServerNotReady,
)
from gptport_client._model import ModelConfig, kv_model, read_config, step_model
from gptport_client._region import room
from gptport_client._retry import Retry, retrying
from gptport_client._step_cache import can_share
from gptport_client._wire import file_request, read_file, read_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._message import InferRequest
    from gptport_client._results import Chunk
    from gptport_client._transport import AnyTransport

T = TypeVar("T")
# How keys and values get to a step model: held by Triton as state, or by the client, in memory that both share or sent with
# each request.
StepTransport: TypeAlias = Literal["auto", "state", "shared_memory", "cuda_shared_memory", "request"]
TRANSPORTS: tuple[str, ...] = get_args(StepTransport)
_KINDS = {"state": "step", "request": "growing"}
ASK_TIMEOUT = 10.0  # seconds for a question that a server answers at once


class ServedModel:
    """The text model `name` and its step models."""

    def __init__(self, transport: AnyTransport, name: str, retry: Retry) -> None:
        self.transport = transport
        self.name = name
        self.retry = retry
        self._shares: bool | None = None  # whether the server maps memory of this client, once it was tried

    def ask(self, attempt: Callable[[], Flow[T]], deadline: Deadline) -> Flow[T]:
        """What `attempt` returns, asked again where that can help."""
        return retrying(attempt, self.retry, deadline, self.transport)

    def step_config(
        self,
        deadline: Deadline,
        request_id: str = "",
        transport: StepTransport = "auto",
        sequences: int = 1,
    ) -> Flow[ModelConfig]:
        """The configuration of the step model to use for so many sequences.

        With `auto` that is NAME_kv, if it is served here and there is room for keys and values where it runs, else NAME_step.

        Raises:
            InvalidRequest: NAME_step does not go with the transport.
        """
        if transport in _KINDS:
            step = yield from self.config(step_model(self.name), deadline, request_id)
            if step.kind != _KINDS[transport]:
                fitting = "request" if step.kind == "growing" else "state"
                raise InvalidRequest(
                    f"transport is {transport!r}, and {step.name!r} goes with {fitting!r}; give that, or 'auto'",
                    request_id,
                )
            return step
        if transport != "auto":
            return (yield from self._kv_config(transport, deadline, request_id))
        kv = yield from self.ask(partial(self._served_kv, deadline, request_id), deadline)
        if kv is not None:
            kv = _where_it_runs(kv)
            if (yield from self._can_share(kv, sequences, deadline, request_id)):
                return kv
        try:
            return (yield from self.config(step_model(self.name), deadline, request_id))
        except ModelNotFound:
            if kv is None:
                raise
            return kv  # the attempt to share memory will say why it cannot be

    def config(self, model: str, deadline: Deadline, request_id: str = "") -> Flow[ModelConfig]:
        """The configuration of the text model or the step model."""
        return self.ask(partial(self._config, model, deadline, request_id), deadline)

    def explained(self, error: ModelNotFound, deadline: Deadline) -> Flow[ModelNotFound]:
        """The error that there is no text model; with what there is instead, if NAME_step is there alone."""
        try:
            step = yield from self._config(step_model(self.name), deadline, error.request_id)
        except GptportError:
            return error
        advice = f"{step.name!r} is served, ids in and logits out: give loop='client', and tokenizer= to the client"
        said = str(error).removesuffix(f" [request {error.request_id}]")
        return ModelNotFound(f"{said}; {advice}", error.request_id)

    def file(self, file: str, deadline: Deadline, request_id: str) -> Flow[bytes]:
        """The content of one of the text model's files."""
        return self.ask(partial(self._file, file, deadline, request_id), deadline)

    def answers(self, request: InferRequest, deadline: Deadline) -> Flow[tuple[Chunk, ...]]:
        """The answers to a request that is not streamed."""
        return self.ask(partial(self._answers, request, deadline), deadline)

    def _kv_config(self, transport: StepTransport, deadline: Deadline, request_id: str) -> Flow[ModelConfig]:
        name = kv_model(self.name)
        try:
            config = yield from self.config(name, deadline, request_id)
        except ModelNotFound as error:
            raise ModelNotFound(
                f"transport={transport!r} needs {name!r}, which {self.transport.url} does not serve: export with "
                "--step-cache both, or use transport='state'",
                request_id,
            ) from error
        if transport == "shared_memory":
            return config
        if config.cache is None or config.cache.gpu is None:
            raise InvalidRequest(
                f"transport={transport!r} is for models on a GPU, and {name!r} runs on a CPU: use 'shared_memory'",
                request_id,
            )
        try:
            bindings()
        except OSError as error:
            raise InvalidRequest(
                f"transport={transport!r} cannot be: {error}; or use 'shared_memory' or 'state'", request_id
            ) from error
        return _where_it_runs(config)

    def _served_kv(self, deadline: Deadline, request_id: str) -> Flow[ModelConfig | None]:
        try:
            return (yield from self._config(kv_model(self.name), deadline, request_id))
        except (ModelNotFound, ServerNotReady):
            return None

    def _can_share(
        self, model: ModelConfig, sequences: int, deadline: Deadline, request_id: str
    ) -> Flow[bool]:
        cache = model.cache
        if cache is None:
            return False
        if not cache.in_cuda_memory and room() < sequences * cache.bytes(model.max_length):
            return False
        if self._shares is None:
            left = deadline.remaining(request_id)
            self._shares = yield from can_share(
                self.transport, cache, ASK_TIMEOUT if left is None else left, request_id
            )
        return self._shares

    def _config(self, model: str, deadline: Deadline, request_id: str) -> Flow[ModelConfig]:
        left = deadline.remaining(request_id)
        answer = yield partial(self.transport.model_config, model, ASK_TIMEOUT if left is None else left)
        return read_config(answer)

    def _answers(self, request: InferRequest, deadline: Deadline) -> Flow[tuple[Chunk, ...]]:
        call = self.transport.stream(request, deadline.remaining(request.id))
        found: list[Chunk] = []
        try:
            while (response := (yield call.read)) is not None:
                found += read_text(response)[0]
        finally:
            call.cancel()
        return tuple(found)

    def _file(self, file: str, deadline: Deadline, request_id: str) -> Flow[bytes]:
        request = file_request(self.name, request_id, file)
        call = self.transport.stream(request, deadline.remaining(request_id))
        contents = []
        while (response := (yield call.read)) is not None:
            content = read_file(response)
            if content is not None:
                contents.append(content)
        if len(contents) != 1:
            raise ProtocolError(f"the server sent {len(contents)} files for {file}, not one", request_id)
        return contents[0]


def _where_it_runs(model: ModelConfig) -> ModelConfig:
    """The same, with keys and values in the memory of the GPU that it runs on, if it does."""
    if model.cache is None or model.cache.gpu is None:
        return model
    return replace(model, cache=replace(model.cache, in_cuda_memory=True))
