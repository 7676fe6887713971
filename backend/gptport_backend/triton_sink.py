"""The answers to one request, as Triton's responses."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from gptport_backend.likelihood import Logprobs
    from gptport_backend.outbox import Outbox
    from gptport_backend.sequence import Piece
    from gptport_backend.watch import Watch


# Bytes of a response; for larger ones the memory shared with Triton, 1 MiB at first, may have to grow.
LARGE = 1 << 16


class TritonSink:
    """The answers to one request on Triton's side; `model` is what the log calls the model.

    A response that cannot be sent, because no memory is left to share with Triton, ends the request with an error: without it
    the client would wait forever, or get a text with a hole.
    """

    def __init__(self, request: Any, model: str, outbox: Outbox, watch: Watch) -> None:
        # What is watched holds the sender, not self: that were a cycle.
        sender = self._sender = request.get_response_sender()
        self._outputs = frozenset(request.requested_output_names())
        self._outbox = outbox
        self.request_id = str(request.request_id())
        self._watched = watch.add(self.request_id, lambda: bool(sender.is_cancelled()))
        self._model = model
        self._lost = False  # a response could not be sent
        self._arrived = time.monotonic()

    def send(self, pieces: tuple[Piece, ...], *, final: bool) -> None:
        """Send one response, with the final flag if it is the last one."""
        self._outbox.put(self.request_id, lambda: self._deliver(pieces, final))
        for piece in pieces:
            if piece.finish_reason:
                self._log(_ended(piece))

    def fail(self, message: str) -> None:
        """End with an error of the server."""
        self.refuse(message, pb_utils.TritonError.INTERNAL)

    def refuse(self, message: str, status: Any) -> None:
        """End with an error of the given status."""
        error = pb_utils.InferenceResponse([], pb_utils.TritonError(message, status))
        self._outbox.put(self.request_id, lambda: None if self._lost else self._send(error, final=True))
        self._log(f"error: {message}")

    def is_cancelled(self) -> bool:
        """True once the client has cancelled the request or is gone, or cannot be reached."""
        return self._watched.cancelled or self._lost

    def _log(self, end: str) -> None:
        """How it ended, as a line of Triton's log, if that is verbose."""
        seconds = time.monotonic() - self._arrived
        line = f"request {self.request_id!r} of {self._model}: {end}, after {seconds:.3f} s"
        self._outbox.put(self.request_id, lambda: pb_utils.Logger.log_verbose(line))

    def _deliver(self, pieces: tuple[Piece, ...], final: bool) -> None:
        if self._lost:
            return
        try:
            # Only what was asked for is made: each tensor costs time, and Triton would drop it.
            wanted = [each for each in _values(pieces) if each[0] in self._outputs]
            arrays = {name: np.array(values, dtype) for name, values, dtype in wanted}
            response = pb_utils.InferenceResponse([pb_utils.Tensor(*each) for each in arrays.items()])
            # A response with the final flag closes the sender even if it fails: none could tell the client.
            apart = final and _size(arrays, pieces) > LARGE
            self._send(response, final=final and not apart)
        except Exception as error:
            self._lost = True
            message = f"the answer cannot be sent: {error}"
            self._send(pb_utils.InferenceResponse([], pb_utils.TritonError(message)), final=True)
            raise
        if apart:
            self._send(None, final=True)

    def _send(self, response: Any, final: bool) -> None:
        if final:
            self._watched.end()  # Triton must not be asked about a request that has ended
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        if response is None:
            self._sender.send(flags=flags)
        else:
            self._sender.send(response, flags=flags)


def _ended(piece: Piece) -> str:
    first = "none" if piece.first_token is None else f"{piece.first_token:.3f} s"
    return (
        f"{piece.finish_reason}, {piece.num_input_tokens} tokens in, {piece.num_output_tokens} out, "
        f"first token {first}"
    )


def _size(arrays: dict[str, NDArray[Any]], pieces: tuple[Piece, ...]) -> int:
    """Bytes of a response, about."""
    return sum(array.nbytes for array in arrays.values()) + sum(len(piece.text) for piece in pieces)


def _values(pieces: tuple[Piece, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Name, values and dtype of each output: a value of each answer; what is a list, one behind the other.

    What has to be asked for by an input is there only if it was.
    """
    first = pieces[0]
    if logprobs := [each for piece in pieces for each in piece.logprobs]:
        yield from _likelihoods(logprobs, "output_log_probs", "top_log_prob_ids", "top_log_probs")
    if first.prompt is not None:
        yield "prompt_ids", first.prompt.token_ids, np.int32
        names = ("prompt_log_probs", "prompt_top_log_prob_ids", "prompt_top_log_probs")
        yield from _likelihoods(first.prompt.logprobs, *names)
    if cumulated := [piece.logprob for piece in pieces if piece.logprob is not None]:
        yield "cum_log_probs", cumulated, np.float32
    yield "text_output", [piece.text.encode() for piece in pieces], np.object_
    yield "index", [piece.index for piece in pieces], np.int32
    yield "output_ids", [token for piece in pieces for token in piece.token_ids], np.int32
    yield "finish_reason", [piece.finish_reason.encode() for piece in pieces], np.object_
    yield "num_input_tokens", [first.num_input_tokens], np.uint32
    yield "num_output_tokens", [piece.num_output_tokens for piece in pieces], np.uint32


def _likelihoods(
    logprobs: Sequence[Logprobs], chosen: str, top_ids: str, top: str
) -> Iterator[tuple[str, Any, Any]]:
    shape = (len(logprobs), len(logprobs[0].top) if logprobs else 0)
    yield chosen, [each.token for each in logprobs], np.float32
    yield top_ids, np.reshape([each.top_ids for each in logprobs], shape), np.int32
    yield top, np.reshape([each.top for each in logprobs], shape), np.float32
