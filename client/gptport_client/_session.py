"""Sessions: a sequence of tokens whose keys and values are kept, for loops of one's own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from gptport_client._deadline import Deadline
from gptport_client._errors import InvalidRequest
from gptport_client._flow import run, run_async
from gptport_client._params import check_integer, check_timeout
from gptport_client._prompt import check_token_ids
from gptport_client._sequence import StepSequence

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from gptport_client._flow import Flow
    from gptport_client._sampling import Logits
    from gptport_client._served import ServedModel, StepTransport


class SessionFlows:
    """What a session does, but for the waiting. One caller at a time."""

    def __init__(
        self,
        model: ServedModel,
        request_id: str,
        transport: StepTransport,
        sequence: StepSequence | None = None,
        unsent: Sequence[int] = (),
    ) -> None:
        self.request_id = request_id
        self._model = model
        self._transport = transport
        self._sequence = sequence
        self._unsent = list(unsent)  # they go along with the next ones

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens of the session."""
        return (*(self._sequence.tokens if self._sequence else ()), *self._unsent)

    def append(self, token_ids: Sequence[int], timeout: float | None) -> Flow[Logits]:
        """See `Session`, as for all that follow."""
        ids = check_token_ids("token_ids", token_ids)
        check_timeout(timeout)
        return self._append(ids, Deadline(timeout))

    def rewind(self, count: int) -> None:
        check_integer("count", count, 0, len(self.tokens))
        unsent = min(count, len(self._unsent))
        del self._unsent[len(self._unsent) - unsent :]
        if self._sequence is not None:
            self._sequence.rewind(count - unsent)

    def fork(self) -> SessionFlows:
        sequence = self._sequence.fork() if self._sequence else None
        unsent = self.tokens[len(sequence.tokens) if sequence else 0 :]
        return SessionFlows(self._model, self.request_id, self._transport, sequence, unsent)

    def resume(self, timeout: float | None) -> Flow[Logits]:
        check_timeout(timeout)
        if self._sequence is None or not self._sequence.tokens:
            raise InvalidRequest("the session has no confirmed tokens to resume; append() some")
        deadline = Deadline(timeout)
        return self._model.ask(partial(self._sequence.resume, deadline), deadline)

    def end(self) -> None:
        if self._sequence is not None:
            self._sequence.end()

    def _append(self, ids: Sequence[int], deadline: Deadline) -> Flow[Logits]:
        if self._sequence is None:
            config = yield from self._model.step_config(deadline, self.request_id, self._transport)
            self._sequence = StepSequence(self._model.transport, config, self.request_id)
        logits = yield from self._sequence.append((*self._unsent, *ids), deadline)
        self._unsent.clear()
        return logits


class Session:
    """A sequence on the step model. Use it as a context manager, or `close()` it. For one thread at a time."""

    def __init__(self, flows: SessionFlows) -> None:
        self._flows = flows

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that were appended and not rewound."""
        return self._flows.tokens

    def append(self, token_ids: Sequence[int], *, timeout: float | None = None) -> Logits:
        """Append tokens; the logits `[vocab]`, float32, for what comes behind the last of them.

        Raises:
            InvalidRequest: no tokens, or more than there is room for.
            SequenceLost: the server dropped the sequence, because it idled or was restarted. `resume()` brings it
                back; its tokens are still here.
        """
        return run(self._flows.append(token_ids, timeout))

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens; costs nothing."""
        self._flows.rewind(count)

    def fork(self) -> Session:
        """A second session with the same tokens.

        What the client holds of them goes along; else the server computes them again with the first `append`.
        """
        return Session(self._flows.fork())

    def resume(self, *, timeout: float | None = None) -> Logits:
        """Go on after an error; the logits `[vocab]` behind the last of the confirmed tokens.

        Where the client holds their keys and values they are still there; else the server computes all of them again.
        """
        return run(self._flows.resume(timeout))

    def close(self) -> None:
        """Let the server forget the sequence; may be called twice."""
        self._flows.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncSession:
    """`Session` for asyncio. Use it as an async context manager, or await `aclose()`. For one task at a time."""

    def __init__(self, flows: SessionFlows) -> None:
        self._flows = flows

    @property
    def tokens(self) -> tuple[int, ...]:
        """See `Session`, as for all that follow."""
        return self._flows.tokens

    async def append(self, token_ids: Sequence[int], *, timeout: float | None = None) -> Logits:
        return await run_async(self._flows.append(token_ids, timeout))

    def rewind(self, count: int) -> None:
        self._flows.rewind(count)

    def fork(self) -> AsyncSession:
        return AsyncSession(self._flows.fork())

    async def resume(self, *, timeout: float | None = None) -> Logits:
        return await run_async(self._flows.resume(timeout))

    async def aclose(self) -> None:
        self._flows.end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
