"""A sequence on the step model, whose keys and values the server holds."""

from __future__ import annotations

import re
import secrets
from functools import partial
from typing import TYPE_CHECKING

from gptport_client._errors import (
    GptportError,
    InvalidRequest,
    SequenceLost,
)
from gptport_client._wire import read_logits, step_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._model import ModelConfig
    from gptport_client._sampling import Logits
    from gptport_client._transport import AnyTransport
    from gptport_client._wire import InferRequest

# What Triton (and what a backend of sequences) answers to a request of a sequence that it does not know.
_NO_SEQUENCE = re.compile(r"start flag|sequence_start", re.IGNORECASE)


class StepSequence:
    """A series of requests with one random sequence id, the first marked as start, the last as end.

    One caller at a time.

    Attributes:
        tokens: those that the server has confirmed.
        lost: whether the server may no longer have the sequence as it is here.
    """

    def __init__(self, transport: AnyTransport, model: ModelConfig, request_id: str) -> None:
        self._transport = transport
        self._model = model
        self._request_id = request_id
        self._id = _sequence_id()
        self._open = False  # the server may hold state for it: it was started and not ended
        self.tokens: list[int] = []
        self.lost = False

    def append(self, token_ids: Sequence[int], deadline: Deadline, *, end: bool = False) -> Flow[Logits]:
        """Append at least one token; the logits `[vocab]` of the last one. With `end` there is no next time.

        Raises:
            SequenceLost: the server does not know the sequence (any more); `resume` computes it anew.
            InvalidRequest: there is no room for the tokens, or the sequence was lost before.
        """
        self._check(token_ids)
        left = deadline.remaining(self._request_id)
        request = self._request(token_ids, end=end)
        try:
            response = yield partial(self._transport.infer, request, left)
        except GptportError as error:
            self.lost = True
            raise self._meaning(error) from error
        logits = read_logits(response, self._model.vocab_size)
        self.tokens.extend(token_ids)
        return logits

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens. Nothing is sent: what is appended next takes their place."""
        del self.tokens[len(self.tokens) - count :]

    def resume(self, deadline: Deadline) -> Flow[Logits]:
        """Compute all tokens again under a new sequence id; the logits `[vocab]` of the last one."""
        self.end()
        self._id, self.lost = _sequence_id(), False
        tokens, self.tokens = self.tokens, []
        try:
            return (yield from self.append(tokens, deadline))
        except GptportError:
            self.tokens = tokens
            raise

    def end(self) -> None:
        """Let the server forget the sequence. Nobody waits for it, and it may be done twice."""
        if self._open:
            # Stock Triton ends a sequence only with a request that carries data.
            self._transport.send(self._request((self.tokens or [0])[-1:], end=True))

    def _request(self, token_ids: Sequence[int], *, end: bool) -> InferRequest:
        # An ending request repeats what the last position has: it never goes beyond the model's length.
        past = len(self.tokens) if len(self.tokens) < self._model.max_length else len(self.tokens) - 1
        start = not self._open
        self._open = not end
        return step_request(
            self._model.name, self._request_id, self._id, token_ids, past, start=start, end=end
        )

    def _check(self, token_ids: Sequence[int]) -> None:
        if self.lost:
            raise InvalidRequest("the sequence was lost on the server; resume() it first", self._request_id)
        room = self._model.max_length - len(self.tokens)
        if len(token_ids) > room:
            raise InvalidRequest(
                f"{len(token_ids)} tokens do not fit behind {len(self.tokens)}; {self._model.name!r} takes "
                f"{self._model.max_length} in all: rewind(), or export with a larger --max-length",
                self._request_id,
            )

    def _meaning(self, error: GptportError) -> GptportError:
        confirmed = len(self.tokens)
        if isinstance(error, InvalidRequest) and confirmed and _NO_SEQUENCE.search(str(error)):
            # Not the caller's fault: Triton has dropped the sequence and takes this for the first request of a new one.
            self._open = False
            return SequenceLost(
                f"the server gave up the sequence after {confirmed} tokens, because it idled too long or the "
                f"server was restarted; resume() computes them again. It said: {error}",
                confirmed=confirmed,
            )
        return error


def _sequence_id() -> int:
    return 1 + secrets.randbelow(2**63 - 1)
