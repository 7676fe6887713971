"""A sequence on a step model."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gptport_client._errors import (
    GptportError,
    InvalidRequest,
    ModelNotFound,
    SequenceLost,
)
from gptport_client._request_cache import RequestCache
from gptport_client._step_cache import ClientCache, ServerCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._deadline import Deadline
    from gptport_client._flow import Flow
    from gptport_client._model import ModelConfig
    from gptport_client._sampling import Logits
    from gptport_client._step_cache import StepCache
    from gptport_client._transport import AnyTransport


class StepSequence:
    """A series of requests, each of which appends tokens. One caller at a time.

    Attributes:
        tokens: those that the server has confirmed.
        lost: whether the server may no longer have the sequence as it is here.
    """

    def __init__(
        self, transport: AnyTransport, model: ModelConfig, request_id: str, cache: StepCache | None = None
    ) -> None:
        self._transport = transport
        self._model = model
        self._request_id = request_id
        self._cache = cache or _cache(transport, model, request_id)
        self.tokens: list[int] = []
        self.lost = False

    def append(self, token_ids: Sequence[int], deadline: Deadline, *, end: bool = False) -> Flow[Logits]:
        """Append at least one token; the logits `[vocab]` of the last one. With `end` there is no next time.

        Raises:
            SequenceLost: the server does not know the sequence (any more); `resume` brings it back.
            InvalidRequest: there is no room for the tokens, or the sequence was lost before.
        """
        self._check(token_ids)
        before = len(self.tokens)
        pieces = [token_ids[i : i + self._cache.most] for i in range(0, len(token_ids), self._cache.most)]
        try:
            for piece in pieces[:-1]:
                yield from self._append(piece, deadline, end=False)
            return (yield from self._append(pieces[-1], deadline, end=end))
        except BaseException:  # an interrupt too: all are appended, or none
            del self.tokens[before:]
            raise

    def _append(self, token_ids: Sequence[int], deadline: Deadline, *, end: bool) -> Flow[Logits]:
        past = len(self.tokens)
        yield from self._cache.prepare(past, len(token_ids), deadline.remaining(self._request_id))
        request = self._cache.request(past, token_ids, end=end)
        try:
            response = yield partial(self._transport.infer, request, deadline.remaining(self._request_id))
        except GptportError as error:
            self.lost = True
            raise self._meaning(error) from error
        except BaseException:  # whether the server has appended them is not known
            self.lost = True
            raise
        logits = self._cache.receive(response)
        self.tokens.extend(token_ids)
        return logits

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens. Nothing is sent: what is appended next takes their place."""
        del self.tokens[len(self.tokens) - count :]

    def resume(self, deadline: Deadline) -> Flow[Logits]:
        """Have the server know the sequence again; the logits `[vocab]` of the last token.

        What keys and values there are is not computed again, but for the last token.
        """
        kept = self._cache.recover(self.tokens)
        self.lost = False
        tokens = self.tokens
        self.tokens = tokens[: min(kept, len(tokens) - 1)]
        try:
            return (yield from self.append(tokens[len(self.tokens) :], deadline))
        except BaseException:  # an interrupt too
            self.tokens, self.lost = tokens, True
            raise

    def fork(self) -> StepSequence:
        """A second sequence with those tokens of this one whose keys and values can be copied. Nothing is sent."""
        cache, kept = self._cache.fork(len(self.tokens))
        other = StepSequence(self._transport, self._model, self._request_id, cache)
        other.tokens = self.tokens[:kept]
        return other

    def end(self) -> None:
        """Let the server forget the sequence. Nobody waits for it, and it may be done twice."""
        self._cache.end(self.tokens)
        self.lost = True

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
        # NOT_FOUND is what Triton says of a region, too.
        lost = isinstance(error, InvalidRequest | ModelNotFound) and confirmed and self._cache.lost(error)
        if not lost:
            return error
        return SequenceLost(
            f"the server gave up the sequence after {confirmed} tokens, because {lost}. It said: {error}",
            confirmed=confirmed,
        )


def _cache(transport: AnyTransport, model: ModelConfig, request_id: str) -> StepCache:
    if model.cache is None:
        return ServerCache(transport, model, request_id)
    if model.kind == "growing":
        return RequestCache(model, model.cache, request_id)
    return ClientCache(transport, model, model.cache, request_id)
