"""How requests travel: the interfaces that the loops use. What carries them: `_grpc.py`, `_grpc_aio.py`, `_http.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._step_cache import AnyRegistration


class Call(Protocol):
    """A running call with many responses."""

    def read(self) -> InferResponse | None:
        """The next response, None after the last; raises a GptportError where the call fails."""

    def cancel(self) -> None:
        """End the call here and on the server, if it has not ended. Safe from other threads."""


class AsyncCall(Protocol):
    """A running call with many responses, to be awaited."""

    async def read(self) -> InferResponse | None:
        """The next response, None after the last; raises a GptportError where the call fails."""

    def cancel(self) -> None:
        """End the call here and on the server, if it has not ended."""


class Transport(Protocol):
    """What carries requests to one server. Safe from several threads; any method may raise a GptportError.

    Timeouts are seconds; None is no limit.
    """

    @property
    def url(self) -> str:
        """The server's address, for messages."""

    def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """Send a request that has one response, and wait for it."""

    def stream(self, request: InferRequest, timeout: float | None) -> Call:
        """Send a request that has any number of responses; does not wait."""

    def send(self, request: InferRequest) -> None:
        """Send a request whose response nobody needs; neither waits nor fails."""

    def register(self, registration: AnyRegistration, timeout: float | None) -> None:
        """Have the server map memory that it shares with this process."""

    def release(self, region: str) -> None:
        """Have the server give a region up, once no request uses it; neither waits nor fails. Closing does so with all."""

    def regions(self, timeout: float | None, *, cuda: bool = False) -> list[str]:
        """The names of the regions of system memory, or of GPUs' memory, that the server has mapped."""

    def server_ready(self, timeout: float | None) -> bool:
        """Whether the server takes requests."""

    def model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the model takes requests."""

    def model_config(self, model: str, timeout: float | None) -> Any:
        """Triton's `ModelConfig` message of a model."""

    def repository(self, timeout: float | None) -> list[Any]:
        """Triton's `ModelIndex` message of each model in the repository."""

    def fetch(self, url: str, timeout: float | None) -> bytes:
        """The content at an HTTP address (that of the metrics)."""

    def sleep(self, seconds: float) -> None:
        """Wait."""

    def close(self) -> None:
        """Cancel what runs and give up the connection; may be called twice."""


class AsyncTransport(Protocol):
    """A `Transport` whose methods are awaited, except for those that do not wait. For one event loop."""

    @property
    def url(self) -> str:
        """The server's address, for messages."""

    async def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """See `Transport`, as for all that follow."""

    def stream(self, request: InferRequest, timeout: float | None) -> AsyncCall: ...

    def send(self, request: InferRequest) -> None: ...

    async def register(self, registration: AnyRegistration, timeout: float | None) -> None: ...

    def release(self, region: str) -> None: ...

    async def regions(self, timeout: float | None, *, cuda: bool = False) -> list[str]: ...

    async def server_ready(self, timeout: float | None) -> bool: ...

    async def model_ready(self, model: str, timeout: float | None) -> bool: ...

    async def model_config(self, model: str, timeout: float | None) -> Any: ...

    async def repository(self, timeout: float | None) -> list[Any]: ...

    async def fetch(self, url: str, timeout: float | None) -> bytes: ...

    async def sleep(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


AnyCall: TypeAlias = Call | AsyncCall
AnyTransport: TypeAlias = Transport | AsyncTransport
