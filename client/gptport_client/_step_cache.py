"""Who holds the keys and values of a sequence on a step model: Triton, or this client in memory that both share."""

from __future__ import annotations

import re
import secrets
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gptport_client._cuda_region import CudaRegion, CudaRegistration
from gptport_client._errors import (
    Cancelled,
    ConnectionError,  # noqa: A004 - ours
    DeadlineExceeded,
    GptportError,
    InvalidRequest,
    QueueFull,
    ServerNotReady,
)
from gptport_client._region import SystemRegion, is_left
from gptport_client._step_wire import kv_request, read_logits, step_request, with_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gptport_client._flow import Flow
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._model import CacheLayout, ModelConfig
    from gptport_client._region import Registration
    from gptport_client._sampling import Logits
    from gptport_client._transport import AnyTransport

# What Triton (and what a backend of sequences) answers to a request of a sequence that it does not know.
_NO_SEQUENCE = re.compile(r"start flag|sequence_start", re.IGNORECASE)
_NO_REGION = re.compile(r"unable to find shared memory region", re.IGNORECASE)

# These say nothing about whether memory can be shared.
_PASSING = (Cancelled, ConnectionError, DeadlineExceeded, QueueFull, ServerNotReady)

# Beside a server on the same machine.
_NEEDED = (
    "sees this client's /dev/shm (between containers: the same ipc) and runs as the same user or as root"
)
_NEEDED_OF_GPUS = (
    "sees the same GPU under the same number (between containers: the same ipc and pid namespace)"
)

_SHORTEST = 64  # positions of a region
Region: TypeAlias = SystemRegion | CudaRegion
AnyRegistration: TypeAlias = "Registration | CudaRegistration"


class StepCache(Protocol):
    """Keys and values of one sequence; `past` is how many of its tokens they are of.

    Attributes:
        most: tokens that one request may append.
    """

    most: int

    def prepare(self, past: int, count: int, timeout: float | None) -> Flow[None]:
        """Make room for `count` tokens more."""

    def request(self, past: int, token_ids: Sequence[int], *, end: bool) -> InferRequest:
        """The request that appends tokens. With `end` there is no next one."""

    def receive(self, response: InferResponse) -> Logits:
        """The logits `[vocab]` in the answer to the last request."""

    def lost(self, error: GptportError) -> str:
        """Why the server no longer knows them, if that is what the error says; else empty."""

    def recover(self, tokens: Sequence[int]) -> int:
        """Begin anew with what there is, and say of how many of the tokens it is."""

    def fork(self, past: int) -> tuple[StepCache, int]:
        """A second one, and of how many tokens it holds what this one holds."""

    def end(self, tokens: Sequence[int]) -> None:
        """Let the server forget them; neither waits nor fails, and may be done twice."""


class ServerCache:
    """Held by Triton as the state of a sequence with a random id."""

    def __init__(self, transport: AnyTransport, model: ModelConfig, request_id: str) -> None:
        self._transport = transport
        self._model = model
        self._request_id = request_id
        self.most = model.max_length
        self._id = _sequence_id()
        self._open = False  # the server may hold state for it: it was started and not ended

    def prepare(self, past: int, count: int, timeout: float | None) -> Flow[None]:  # noqa: ARG002
        """See `StepCache`, as for all that follow."""
        yield from ()

    def request(self, past: int, token_ids: Sequence[int], *, end: bool) -> InferRequest:
        start = not self._open
        self._open = not end
        return step_request(
            self._model.name, self._request_id, self._id, token_ids, past, start=start, end=end
        )

    def receive(self, response: InferResponse) -> Logits:
        return read_logits(response, self._model.vocab_size)

    def lost(self, error: GptportError) -> str:
        if not _NO_SEQUENCE.search(str(error)):
            return ""
        # Not the caller's fault: Triton has dropped the sequence and takes this for the first request of a new one.
        self._open = False
        return "it idled too long or the server was restarted; resume() computes them again"

    def recover(self, tokens: Sequence[int]) -> int:
        self.end(tokens)
        self._id = _sequence_id()
        return 0

    def fork(self, past: int) -> tuple[ServerCache, int]:  # noqa: ARG002
        return ServerCache(self._transport, self._model, self._request_id), 0

    def end(self, tokens: Sequence[int]) -> None:
        if self._open:
            # Stock Triton ends a sequence only with a request that carries data. It repeats what the last position has: it never
            # goes beyond the model's length.
            past = min(len(tokens), self._model.max_length - 1)
            self._transport.send(self.request(past, (tokens or [0])[-1:], end=True))


class ClientCache:
    """Held here, in a region that the server maps: inputs and outputs of each request lie in it, in the same places.

    A region has room for at most twice as many tokens as are needed: what a request costs grows with it.
    """

    def __init__(
        self, transport: AnyTransport, model: ModelConfig, layout: CacheLayout, request_id: str
    ) -> None:
        self._transport = transport
        self._model = model
        self._layout = layout
        self._request_id = request_id
        self.most = model.max_length
        self._region: Region | None = None
        self._registered: weakref.finalize[Any, Region] | None = None
        self._template: InferRequest = None

    def prepare(self, past: int, count: int, timeout: float | None) -> Flow[None]:
        """See `StepCache`, as for all that follow.

        Raises:
            InvalidRequest: there is no room for the memory, or the server cannot share it.
        """
        needed = past + count
        if self._region is None or self._region.length < needed:
            self._move(min(max(_SHORTEST, 1 << needed.bit_length()), self._model.max_length), past)
        if self._registered is None:
            yield from self._register(timeout)

    def request(self, past: int, token_ids: Sequence[int], *, end: bool) -> InferRequest:  # noqa: ARG002
        return kv_request(self._template, token_ids, past)

    def receive(self, response: InferResponse) -> Logits:
        return read_logits(response, self._model.vocab_size)

    def lost(self, error: GptportError) -> str:
        return (
            "it was restarted; resume() goes on with their keys and values, which are here"
            if _NO_REGION.search(str(error))
            else ""
        )

    def recover(self, tokens: Sequence[int]) -> int:
        if self._region is None:
            return 0
        # Another region: a request that was given up may still be at work on this one, and it can be registered once.
        self._move(self._region.length, len(tokens))
        return len(tokens)

    def fork(self, past: int) -> tuple[ClientCache, int]:
        other = ClientCache(self._transport, self._model, self._layout, self._request_id)
        if self._region is None:
            return other, 0
        other._region = self._copy(self._region.length, past)
        return other, past

    def end(self, tokens: Sequence[int]) -> None:  # noqa: ARG002
        self._leave()
        self._region = None

    def _move(self, length: int, used: int) -> None:
        region = self._copy(length, used)
        self._leave()
        self._region = region

    def _copy(self, length: int, used: int) -> Region:
        layout = self._layout
        try:
            region = new_region(layout, length)
            if self._region is not None:
                region.copy(self._region, used)
        except OSError as error:
            advice = (CudaRegion if layout.in_cuda_memory else SystemRegion).advice
            raise InvalidRequest(
                f"there is no shared memory for {length} tokens, {layout.bytes(length):,} bytes: {error}; {advice}, "
                "or use transport='state', which needs NAME_step",
                self._request_id,
            ) from error
        return region

    def _register(self, timeout: float | None) -> Flow[None]:
        region = self._region
        assert region is not None
        with region.registration() as registration:
            release = weakref.finalize(region, self._transport.release, registration.name)
            release.atexit = False  # the transport does that
            try:
                yield from register(self._transport, registration, timeout, self._request_id)
            except BaseException:  # an interrupt too
                self._region = self._copy(region.length, region.length)  # one can be registered once
                release()
                raise
        self._registered = release
        self._template = with_cache(
            self._model.name, self._request_id, self._layout, registration.name, region.length
        )

    def _leave(self) -> None:
        if self._registered is not None:
            self._registered()
            self._registered = None


def new_region(layout: CacheLayout, length: int) -> Region:
    """Memory for so many tokens, where the layout wants it; OSError if there is none."""
    rows = len(layout.tensors) * layout.heads
    if layout.in_cuda_memory:
        return CudaRegion(rows, length, layout.width, layout.gpu or 0)
    return SystemRegion(rows, length, layout.width)


def register(
    transport: AnyTransport, registration: AnyRegistration, timeout: float | None, request_id: str
) -> Flow[None]:
    """Have the server map a region, and give up those of clients on this machine that were killed.

    Raises:
        InvalidRequest: it cannot.
    """
    cuda = isinstance(registration, CudaRegistration)
    try:
        for name in (yield partial(transport.regions, timeout, cuda=cuda)):
            if is_left(name):
                transport.release(name)
        yield partial(transport.register, registration, timeout)
    except _PASSING:
        raise
    except GptportError as error:
        memory = (
            f"memory of GPU {registration.device}" if isinstance(registration, CudaRegistration) else "memory"
        )
        needed = _NEEDED_OF_GPUS if cuda else _NEEDED
        raise InvalidRequest(
            f"{memory} cannot be shared with {transport.url}: {error}. That needs a server on this machine that {needed}, and "
            "since Triton 26.04 was started with --allow-client-shm=true; else use transport='state', which needs NAME_step",
            request_id,
        ) from error


def can_share(
    transport: AnyTransport, layout: CacheLayout, timeout: float | None, request_id: str
) -> Flow[bool]:
    """Whether the server maps memory of this client, where the layout wants it."""
    try:
        region = new_region(layout, 1)
    except OSError:
        return False
    with region.registration() as registration:
        try:
            yield from register(transport, registration, timeout, request_id)
        except InvalidRequest:
            return False
        finally:
            transport.release(registration.name)
    return True


def _sequence_id() -> int:
    return 1 + secrets.randbelow(2**63 - 1)
