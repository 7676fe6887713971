"""gRPC for callers that await."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from grpc import aio
from tritonclient.grpc import service_pb2_grpc

from gptport_client._fetch import fetch
from gptport_client._grpc import GrpcTransport
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
    from collections.abc import Callable, Coroutine

    from gptport_client._endpoint import Endpoint
    from gptport_client._message import InferRequest, InferResponse


class AsyncGrpcTransport(GrpcService):
    """gRPC to one Triton, over one channel of the event loop that runs at the first request."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._credentials = None if endpoint.tls is None else credentials(endpoint.tls)
        self._channel: Any = None
        self._closed = False
        self._running: set[asyncio.Future[Any]] = set()  # requests with one response that have not ended
        # Sessions that nobody closed are collected in any thread, and when the event loop has ended.
        self._releases = Releases(self._unregister_blocking)
        self._blocking: GrpcTransport | None = None

    async def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """See `Transport`, as for all that follow."""
        answer = self._begin(request, None if timeout is None else timeout + SEND_TIMEOUT)
        try:
            # Shielded: the call is left to its end, as a step cannot be stopped halfway.
            return await asyncio.wait_for(asyncio.shield(answer), timeout)
        except TimeoutError as error:
            raise error_from_status("DEADLINE_EXCEEDED", "timeout", self._origin(request)) from error
        except grpc.RpcError as error:
            raise translate(error, self._origin(request)) from error

    def stream(self, request: InferRequest, timeout: float | None) -> AsyncGrpcCall:
        # Without the header triton_grpc_error: see GrpcTransport.
        call = self._service().ModelStreamInfer(iter((request,)), timeout=timeout, metadata=self._metadata)
        return AsyncGrpcCall(call, self._origin(request))

    def send(self, request: InferRequest) -> None:
        if not self._closed:
            self._begin(request, SEND_TIMEOUT)

    def release(self, region: str) -> None:
        self._releases.release(region)

    async def fetch(self, url: str, timeout: float | None) -> bytes:
        return await asyncio.to_thread(fetch, url, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await asyncio.to_thread(self._releases.close)
        if self._blocking is not None:
            self._blocking.close()
        if self._running:  # closing the channel would cancel the requests that end sequences
            await asyncio.wait(self._running, timeout=SEND_TIMEOUT)
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    def _service(self) -> Any:
        if self._closed:
            raise closed_error()
        if self._channel is None:
            address = self._endpoint.address
            self._channel = (
                aio.insecure_channel(address, options=OPTIONS)
                if self._credentials is None
                else aio.secure_channel(address, self._credentials, options=OPTIONS)
            )
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub

    def _begin(self, request: InferRequest, timeout: float | None) -> asyncio.Future[Any]:
        call = self._service().ModelInfer(request, timeout=timeout, metadata=self._headers(request))
        return self._run(_answer(call))

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        """Run what the channel is not closed before."""
        running = asyncio.ensure_future(work)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return running

    def _unregister_blocking(self, region: str, timeout: float) -> None:
        if self._blocking is None:
            self._blocking = GrpcTransport(self._endpoint)
        self._blocking._unregister(region, timeout)

    def _ended(self, answer: asyncio.Future[Any]) -> None:
        self._running.discard(answer)
        if not answer.cancelled():
            answer.exception()  # nobody may wait for it, and asyncio would complain

    async def _unary(
        self, method: str, request: Any, timeout: float | None, pick: Callable[[Any], Any], model: str = ""
    ) -> Any:
        try:
            answer = await getattr(self._service(), method)(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            raise translate(error, Origin(self.url, model)) from error
        return pick(answer)


class AsyncGrpcCall:
    """A running ModelStreamInfer with one request."""

    def __init__(self, call: Any, origin: Origin) -> None:
        self._call = call
        self._origin = origin
        self._cancelled_here = False

    async def read(self) -> InferResponse | None:
        """See `AsyncCall`."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            raise translate(error, self._origin) from error
        except asyncio.CancelledError:
            if not self._cancelled_here:
                raise
            raise error_from_status("CANCELLED", "the stream was closed", self._origin) from None
        if response is aio.EOF:
            return None
        if response.error_message:
            raise error_from_text(response.error_message, self._origin)
        return response.infer_response

    def cancel(self) -> None:
        """See `AsyncCall`."""
        self._cancelled_here = True
        with contextlib.suppress(RuntimeError):  # its event loop is closed
            self._call.cancel()


async def _answer(call: Any) -> Any:
    return await call
