"""One model on one server: how it is asked, and what it is asked beside text."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from gptport_client._errors import ProtocolError
from gptport_client._model import ModelConfig, read_config, step_model
from gptport_client._retry import Retry, retrying
from gptport_client._wire import file_request, read_file

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._transport import AnyTransport

T = TypeVar("T")
ASK_TIMEOUT = 10.0  # seconds for a question that a server answers at once


class ServedModel:
    """The text model `name` and its step model."""

    def __init__(self, transport: AnyTransport, name: str, retry: Retry) -> None:
        self.transport = transport
        self.name = name
        self.retry = retry

    def ask(self, attempt: Callable[[], Flow[T]], deadline: Deadline) -> Flow[T]:
        """What `attempt` returns, asked again where that can help."""
        return retrying(attempt, self.retry, deadline, self.transport)

    def step_config(self, deadline: Deadline, request_id: str = "") -> Flow[ModelConfig]:
        """The step model's configuration."""
        return self.config(step_model(self.name), deadline, request_id)

    def config(self, model: str, deadline: Deadline, request_id: str = "") -> Flow[ModelConfig]:
        """The configuration of the text model or the step model."""
        return self.ask(partial(self._config, model, deadline, request_id), deadline)

    def file(self, file: str, deadline: Deadline, request_id: str) -> Flow[bytes]:
        """The content of one of the text model's files."""
        return self.ask(partial(self._file, file, deadline, request_id), deadline)

    def _config(self, model: str, deadline: Deadline, request_id: str) -> Flow[ModelConfig]:
        left = deadline.remaining(request_id)
        answer = yield partial(self.transport.model_config, model, ASK_TIMEOUT if left is None else left)
        return read_config(answer)

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
