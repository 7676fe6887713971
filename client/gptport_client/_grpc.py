"""gRPC for callers that block."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from gptport_client._fetch import fetch
from gptport_client._grpc_service import (
    OPTIONS,
    SEND_TIMEOUT,
    GrpcService,
    closed_error,
    credentials,
    translate,
)
from gptport_client._releases import Releases
from gptport_client._status import Origin, error_from_status, error_from_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptport_client._endpoint import Endpoint
    from gptport_client._message import InferRequest, InferResponse


class GrpcTransport(GrpcService):
    """gRPC to one Triton, over one channel."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        if endpoint.tls is None:
            self._channel = grpc.insecure_channel(endpoint.address, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(endpoint.address, credentials(endpoint.tls), options=OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = threading.Event()
        self._releases = Releases(self._unregister)
        self._running: set[Any] = set()  # calls with one response that have not ended

    def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """See `Transport`, as for all that follow."""
        self._check_open()
        try:
            call = self._begin(request, None if timeout is None else timeout + SEND_TIMEOUT)
            return call.result(timeout)
        except grpc.FutureTimeoutError as error:
            # The call is left to its end: a step cannot be stopped halfway, and Triton 24.10 leaks requests that are
            # cancelled while they end.
            raise error_from_status("DEADLINE_EXCEEDED", "timeout", self._origin(request)) from error
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise translate(call, self._origin(request)) from error
        except ValueError as error:  # closed since the check
            raise closed_error() from error

    def stream(self, request: InferRequest, timeout: float | None) -> GrpcCall:
        self._check_open()
        # Not with the header triton_grpc_error, which would give stream errors a status: with it, requests that
        # fail or are cancelled crash Triton 24.10 (signal 11), for all its clients.
        try:
            call = self._stub.ModelStreamInfer(iter((request,)), timeout=timeout, metadata=self._metadata)
        except ValueError as error:
            raise closed_error() from error
        return GrpcCall(call, self._origin(request))

    def send(self, request: InferRequest) -> None:
        with contextlib.suppress(ValueError):  # raised by a channel that is closed
            self._begin(request, SEND_TIMEOUT)

    def release(self, region: str) -> None:
        self._releases.release(region)

    def fetch(self, url: str, timeout: float | None) -> bytes:
        return fetch(url, timeout)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._releases.close()
        self._closed.set()
        end = time.monotonic() + SEND_TIMEOUT
        # Closing the channel would cancel the requests that end sequences.
        for call in tuple(self._running):
            with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError, grpc.FutureCancelledError):
                call.result(timeout=max(0.0, end - time.monotonic()))
        self._channel.close()

    def _begin(self, request: InferRequest, timeout: float | None) -> Any:
        call = self._stub.ModelInfer.future(request, timeout=timeout, metadata=self._headers(request))
        self._running.add(call)
        call.add_done_callback(self._running.discard)
        return call

    def _unary(
        self, method: str, request: Any, timeout: float | None, pick: Callable[[Any], Any], model: str = ""
    ) -> Any:
        self._check_open()
        try:
            return pick(getattr(self._stub, method)(request, timeout=timeout, metadata=self._metadata))
        except grpc.RpcError as error:
            raise translate(error, Origin(self.url, model)) from error
        except ValueError as error:  # closed since the check
            raise closed_error() from error

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise closed_error()


class GrpcCall:
    """A running ModelStreamInfer with one request."""

    def __init__(self, call: Any, origin: Origin) -> None:
        self._call = call
        self._origin = origin

    def read(self) -> InferResponse | None:
        """See `Call`."""
        try:
            response = next(self._call, None)
        except grpc.RpcError as error:
            raise translate(error, self._origin) from error
        if response is None:
            return None
        if response.error_message:
            raise error_from_text(response.error_message, self._origin)
        return response.infer_response

    def cancel(self) -> None:
        """See `Call`."""
        self._call.cancel()
