"""The two loops with blocking calls: the server's, which only has to be read, and the client's own."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from gptport_client._errors import Cancelled, GptportError, InvalidRequest, ProtocolError, ServerError
from gptport_client._sequence import StepSequence
from gptport_client._wire import read_logits, read_text

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from threading import Event

    from gptport_client._deadline import Deadline
    from gptport_client._generation import Generation
    from gptport_client._model import ModelConfig
    from gptport_client._results import Chunk
    from gptport_client._transport import Call, Transport
    from gptport_client._wire import InferRequest, InferResponse

# What Triton (and what a backend of sequences) answers to a request of a sequence that it does not know.
_NO_SEQUENCE = re.compile(r"start flag|sequence_start", re.IGNORECASE)


def server_loop(call: Call, request_id: str) -> Iterator[Chunk]:
    """The chunks in the responses of a running call to the text model."""
    responses = iter(call)
    for response in responses:
        try:
            chunk, final = read_text(response)
        except ProtocolError as error:
            raise ProtocolError(str(error), request_id) from error
        if chunk is not None and chunk.finish_reason is not None:
            _drain(responses)
            yield chunk
            return
        if chunk is not None and (chunk.text or chunk.token_ids):
            yield chunk
        if final:
            break
    raise ProtocolError("the stream ended without a finish reason; the server's log may say why", request_id)


def _drain(responses: Iterator[InferResponse]) -> None:
    # The answer is complete. Read to its end, the call ends by itself; left here, it would be cancelled while the
    # server ends it. What goes wrong now is nobody's concern.
    with contextlib.suppress(GptportError):
        for _ in responses:
            pass


def client_loop(
    transport: Transport,
    generation: Generation,
    model: ModelConfig,
    deadline: Deadline,
    stop: Event,
    request_id: str,
) -> Generator[Chunk, None, None]:
    """Run `generation` on the step model, one call a token, until it finishes or another thread sets `stop`.

    The sequence is ended on the server however this ends.
    """
    sequence = StepSequence(model.name, request_id)
    try:
        while True:
            if stop.is_set():
                raise Cancelled("the stream was closed", request_id)
            confirmed = sequence.length
            request = sequence.append(generation.pending, end=generation.last)
            logits = read_logits(_infer(transport, request, deadline, confirmed), model.vocab_size)
            chunk = generation.accept(logits)
            if generation.finished:
                break
            if chunk is not None:
                yield chunk
    except ProtocolError as error:
        raise ProtocolError(str(error), request_id) from error
    finally:
        if sequence.open:
            # Stock Triton ends a sequence only with a request that carries data. Nobody waits for the answer.
            transport.send(sequence.append(generation.pending[-1:], end=True))
    if chunk is not None:
        yield chunk


def _infer(transport: Transport, request: InferRequest, deadline: Deadline, confirmed: int) -> InferResponse:
    try:
        return transport.infer(request, deadline.remaining(request.id))
    except InvalidRequest as error:
        if confirmed == 0 or not _NO_SEQUENCE.search(str(error)):
            raise
        # Not the caller's fault: Triton has dropped the sequence and takes this for the first request of a
        # new one.
        raise ServerError(
            f"the server gave up the sequence after {confirmed} tokens, because it idled too long or the "
            f"server was restarted; generate again. It said: {error}"
        ) from error
