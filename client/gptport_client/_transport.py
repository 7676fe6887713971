"""How requests travel: the interface that the loops use, and gRPC behind it."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gptport_client._errors import GptportError, InvalidRequest
from gptport_client._status import Origin, error_from_status, error_from_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptport_client._wire import InferRequest, InferResponse

# A request may outlive its caller by this many seconds: one that ends a sequence, or a step that took too long.
SEND_TIMEOUT = 5.0

OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A process that is killed closes its connection, which is noticed at once; this notices a host that
    # vanished. Not more often: a gRPC server ends a connection that pings more than every 300 s while nothing
    # else is sent ("too_many_pings"), and so it is when a request waits in the queue.
    ("grpc.keepalive_time_ms", 310_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Clients of one process share connections unless told not to: closing one would disturb the others'
    # backoff.
    ("grpc.use_local_subchannel_pool", 1),
)


class Call(Protocol):
    """A running call with many responses."""

    def __iter__(self) -> Iterator[InferResponse]:
        """The responses as they come; raises a GptportError where the call fails."""

    def cancel(self) -> None:
        """End the call here and on the server, if it has not ended. Safe from other threads."""


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
        """Send a request that has any number of responses."""

    def send(self, request: InferRequest) -> None:
        """Send a request whose response nobody needs; neither waits nor fails."""

    def server_ready(self, timeout: float | None) -> bool:
        """Whether the server takes requests."""

    def model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether the model takes requests."""

    def model_config(self, model: str, timeout: float | None) -> Any:
        """Triton's `ModelConfig` message of a model."""

    def repository(self, timeout: float | None) -> list[Any]:
        """Triton's `ModelIndex` message of each model in the repository."""

    def close(self) -> None:
        """Cancel what runs and give up the connection; may be called twice."""


class GrpcTransport:
    """gRPC to one Triton, over one channel."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._channel = grpc.insecure_channel(url, options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = threading.Event()
        self._running: set[Any] = set()  # calls with one response that have not ended

    @property
    def url(self) -> str:
        return self._url

    def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        self._check_open()
        try:
            call = self._begin(request, None if timeout is None else timeout + SEND_TIMEOUT)
            return call.result(timeout)
        except grpc.FutureTimeoutError as error:
            # The call is left to its end: a step cannot be stopped halfway, and Triton 24.10 leaks requests that are
            # cancelled while they end.
            raise error_from_status("DEADLINE_EXCEEDED", "timeout", self._origin(request)) from error
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise _translate(call, self._origin(request)) from error
        except ValueError as error:  # closed since the check
            raise _closed_error() from error

    def stream(self, request: InferRequest, timeout: float | None) -> GrpcCall:
        self._check_open()
        # Not with the header triton_grpc_error, which would give stream errors a status: with it, requests that
        # fail or are cancelled crash Triton 24.10 (signal 11), for all its clients.
        try:
            call = self._stub.ModelStreamInfer(iter((request,)), timeout=timeout)
        except ValueError as error:
            raise _closed_error() from error
        return GrpcCall(call, self._origin(request))

    def send(self, request: InferRequest) -> None:
        with contextlib.suppress(ValueError):  # raised by a channel that is closed
            self._begin(request, SEND_TIMEOUT)

    def _begin(self, request: InferRequest, timeout: float | None) -> Any:
        call = self._stub.ModelInfer.future(request, timeout=timeout)
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return call

    def server_ready(self, timeout: float | None) -> bool:
        request = service_pb2.ServerReadyRequest()
        return bool(self._unary(self._stub.ServerReady, request, timeout, Origin(self._url)).ready)

    def model_ready(self, model: str, timeout: float | None) -> bool:
        request = service_pb2.ModelReadyRequest(name=model)
        return bool(self._unary(self._stub.ModelReady, request, timeout, Origin(self._url, model)).ready)

    def model_config(self, model: str, timeout: float | None) -> Any:
        request = service_pb2.ModelConfigRequest(name=model)
        return self._unary(self._stub.ModelConfig, request, timeout, Origin(self._url, model)).config

    def repository(self, timeout: float | None) -> list[Any]:
        request = service_pb2.RepositoryIndexRequest()
        return list(self._unary(self._stub.RepositoryIndex, request, timeout, Origin(self._url)).models)

    def close(self) -> None:
        self._closed.set()
        end = time.monotonic() + SEND_TIMEOUT
        # Closing the channel would cancel the requests that end sequences.
        for call in tuple(self._running):
            with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, end - time.monotonic()))
        self._channel.close()

    def _unary(self, method: Any, request: Any, timeout: float | None, origin: Origin) -> Any:
        self._check_open()
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _translate(error, origin) from error
        except ValueError as error:  # closed since the check
            raise _closed_error() from error

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise _closed_error()

    def _origin(self, request: InferRequest) -> Origin:
        return Origin(self._url, request.model_name, request.id)


class GrpcCall:
    """A running ModelStreamInfer with one request."""

    def __init__(self, call: Any, origin: Origin) -> None:
        self._call = call
        self._origin = origin

    def __iter__(self) -> Iterator[InferResponse]:
        try:
            for response in self._call:
                if response.error_message:
                    raise error_from_text(response.error_message, self._origin)
                yield response.infer_response
        except grpc.RpcError as error:
            raise _translate(error, self._origin) from error

    def cancel(self) -> None:
        self._call.cancel()


def _translate(error: Any, origin: Origin) -> GptportError:
    return error_from_status(error.code().name, error.details() or "", origin)


def _closed_error() -> GptportError:
    return InvalidRequest("this client is closed; make a new one")
