"""The server's own loop, which only has to be read."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gptport_client._errors import Cancelled, GptportError, ModelNotFound, ProtocolError
from gptport_client._wire import read_text

if TYPE_CHECKING:
    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow, Pieces
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._served import ServedModel
    from gptport_client._transport import AnyCall


class ServerAnswer:
    """The `count` answers of the text model to one request; they are on their way when this is made."""

    def __init__(self, model: ServedModel, request: InferRequest, deadline: Deadline, count: int = 1) -> None:
        self.request_id: str = request.id
        self._model = model
        self._request = request
        self._deadline = deadline
        self._count = count
        self._cancelled = False
        self._unread = True  # of the call that runs
        self._call = self._begin()

    def cancel(self) -> None:
        """End the call here and on the server, if it has not ended."""
        self._cancelled = True
        self._call.cancel()

    def pieces(self) -> Pieces:
        """The chunks in the responses."""
        try:
            yield from self._read((yield from self._first()))
        except ProtocolError as error:
            raise ProtocolError(str(error), self.request_id) from error
        finally:
            self._call.cancel()

    def _first(self) -> Flow[InferResponse | None]:
        try:
            return (yield from self._model.ask(self._attempt, self._deadline))
        except ModelNotFound as error:
            raise (yield from self._model.explained(error, self._deadline)) from error

    def _attempt(self) -> Flow[InferResponse | None]:
        if not self._unread:
            self._call = self._begin()
        self._unread = False
        if self._cancelled:
            raise Cancelled("the stream was closed", self.request_id)
        return (yield self._call.read)

    def _begin(self) -> AnyCall:
        return self._model.transport.stream(self._request, self._deadline.remaining(self.request_id))

    def _read(self, response: InferResponse | None) -> Pieces:
        running = self._count
        while response is not None:
            chunks, final = read_text(response)
            running -= sum(chunk.finish_reason is not None for chunk in chunks)
            if not running:
                yield from self._drain()
            for chunk in chunks:
                if chunk.finish_reason or chunk.text or chunk.token_ids or chunk.prompt_score:
                    yield chunk
            if not running:
                return
            if final:
                break
            response = yield self._call.read
        raise ProtocolError("the stream ended without a finish reason; the server's log may say why")

    def _drain(self) -> Flow[None]:
        # The answer is complete. Read to its end, the call ends by itself; left here, it would be cancelled while
        # the server ends it. What goes wrong now is nobody's concern.
        with contextlib.suppress(GptportError):
            while (yield self._call.read) is not None:
                pass
