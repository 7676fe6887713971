"""HTTP to one Triton, for callers that block; for those that await, threads do it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2, service_pb2

from gptport_client._cuda_region import CudaRegistration
from gptport_client._deadline import Deadline
from gptport_client._errors import Cancelled, GptportError, ProtocolError
from gptport_client._fetch import fetch
from gptport_client._grpc_service import SEND_TIMEOUT, closed_error
from gptport_client._http_connections import Exchange, HttpConnections
from gptport_client._http_wire import LENGTH_HEADER, generate_body, infer_body, read_event, read_infer
from gptport_client._region import in_cuda_memory
from gptport_client._releases import Releases
from gptport_client._status import Origin, error_from_http, error_from_status, error_from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from email.message import Message

    from gptport_client._endpoint import Endpoint
    from gptport_client._message import InferRequest, InferResponse
    from gptport_client._step_cache import AnyRegistration

T = TypeVar("T")
_SYSTEM, _CUDA = "/v2/systemsharedmemory", "/v2/cudasharedmemory"
MOST_THREADS = 256  # of an AsyncClient: requests at a time


class HttpTransport:
    """HTTP to one Triton; connections are kept and used again."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.url = endpoint.address
        self._headers = dict(endpoint.headers)
        self._connections = HttpConnections(endpoint)
        self._running: weakref.WeakSet[HttpCall] = weakref.WeakSet()
        self._sending = ThreadPoolExecutor(4, thread_name_prefix="gptport-send")
        self._sent: set[Future[Any]] = set()
        self._closed = False
        self._releases = Releases(self._unregister)

    def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """See `Transport`, as for all that follow."""
        body, headers = infer_body(request)
        origin = Origin(self.url, request.model_name, request.id)
        path = f"/v2/models/{quote(request.model_name)}/infer"
        answered, content = self._checked("POST", path, timeout, origin, body, headers)
        return read_infer(content, int(answered.get(LENGTH_HEADER, len(content))))

    def stream(self, request: InferRequest, timeout: float | None) -> HttpCall:
        self._check_open()
        call = HttpCall(self._connections, self._headers, request, self.url, timeout)
        self._running.add(call)
        return call

    def send(self, request: InferRequest) -> None:
        if not self._closed:
            sent = self._sending.submit(self.infer, request, SEND_TIMEOUT)
            self._sent.add(sent)
            sent.add_done_callback(self._sent.discard)

    def register(self, registration: AnyRegistration, timeout: float | None) -> None:
        self._releases.hold(registration.name)
        wanted: dict[str, Any] = {"byte_size": registration.byte_size}
        if isinstance(registration, CudaRegistration):
            handle = base64.b64encode(registration.handle).decode()
            wanted |= {"raw_handle": {"b64": handle}, "device_id": registration.device}
        else:
            wanted |= {"key": registration.key, "offset": 0}
        path = f"{_region(registration.name)}/register"
        self._checked("POST", path, timeout, Origin(self.url), json.dumps(wanted).encode())

    def release(self, region: str) -> None:
        self._releases.release(region)

    def regions(self, timeout: float | None, *, cuda: bool = False) -> list[str]:
        found = self._json("GET", f"{_CUDA if cuda else _SYSTEM}/status", timeout, Origin(self.url))
        return [each["name"] for each in found]

    def server_ready(self, timeout: float | None) -> bool:
        return self._ready("/v2/health/ready", timeout)

    def model_ready(self, model: str, timeout: float | None) -> bool:
        return self._ready(f"/v2/models/{quote(model)}/ready", timeout)

    def model_config(self, model: str, timeout: float | None) -> Any:
        origin = Origin(self.url, model)
        found = self._json("GET", f"/v2/models/{quote(model)}/config", timeout, origin)
        try:
            return json_format.ParseDict(found, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise ProtocolError(f"the configuration of {model!r} is not Triton's: {error}") from error

    def repository(self, timeout: float | None) -> list[Any]:
        found = self._json("POST", "/v2/repository/index", timeout, Origin(self.url))
        index = service_pb2.RepositoryIndexResponse.ModelIndex
        names = index.DESCRIPTOR.fields_by_name
        return [index(**{name: each[name] for name in names if name in each}) for each in found]

    def fetch(self, url: str, timeout: float | None) -> bytes:
        return fetch(url, timeout)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        self._releases.close()
        self._closed = True
        for call in tuple(self._running):
            call.cancel()
        wait(tuple(self._sent), SEND_TIMEOUT)
        self._sending.shutdown(wait=False, cancel_futures=True)
        self._connections.close()

    def _unregister(self, region: str, timeout: float) -> None:
        self._checked("POST", f"{_region(region)}/unregister", timeout, Origin(self.url))

    def _ready(self, path: str, timeout: float | None) -> bool:
        status, _, _ = self._exchange("GET", path, timeout, Origin(self.url))
        return status == http.client.OK

    def _json(self, method: str, path: str, timeout: float | None, origin: Origin) -> Any:
        _, content = self._checked(method, path, timeout, origin)
        try:
            return json.loads(content)
        except ValueError as error:
            raise ProtocolError(f"{self.url} does not answer with JSON; check the URL") from error

    def _checked(
        self,
        method: str,
        path: str,
        timeout: float | None,
        origin: Origin,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[Message, bytes]:
        status, answered, content = self._exchange(method, path, timeout, origin, body, headers)
        if status != http.client.OK:
            raise error_from_http(status, _error_text(content), origin)
        return answered, content

    def _exchange(
        self,
        method: str,
        path: str,
        timeout: float | None,
        origin: Origin,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Message, bytes]:
        self._check_open()
        exchange = Exchange(self._connections, Deadline(timeout))
        try:
            response = exchange.begin(method, path, body, {**self._headers, **(headers or {})})
            return response.status, response.headers, exchange.rest()
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error, origin) from error
        finally:
            exchange.end()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()


class HttpCall:
    """A request to `/generate_stream`, which is sent with the first `read`."""

    def __init__(
        self,
        connections: HttpConnections,
        headers: Mapping[str, str],
        request: InferRequest,
        url: str,
        timeout: float | None,
    ) -> None:
        self._origin = Origin(url, request.model_name, request.id)
        self._exchange = Exchange(connections, Deadline(timeout))
        self._path = f"/v2/models/{quote(request.model_name)}/generate_stream"
        self._body = generate_body(request)
        self._headers = {**headers, "Content-Type": "application/json", "Accept": "text/event-stream"}
        self._begun = False
        self._cancelled = False

    def read(self) -> InferResponse | None:
        """See `Call`."""
        try:
            return self._read()
        except (OSError, http.client.HTTPException, AttributeError) as error:  # http.client's, after an abort
            self._exchange.end()
            if self._cancelled:
                raise Cancelled("the stream was closed", self._origin.request_id) from error
            raise _broken(error, self._origin) from error
        except GptportError:
            self._exchange.end()
            raise

    def cancel(self) -> None:
        """See `Call`."""
        self._cancelled = True
        self._exchange.abort()

    def _read(self) -> InferResponse | None:
        if self._cancelled:
            raise Cancelled("the stream was closed", self._origin.request_id)
        if not self._begun:
            self._begun = True
            self._begin()
        while line := self._exchange.line():
            if line.startswith(b"data:"):
                return self._event(line.removeprefix(b"data:"))
        if self._cancelled:
            raise Cancelled("the stream was closed", self._origin.request_id)
        self._exchange.end()
        return None

    def _begin(self) -> None:
        response = self._exchange.begin("POST", self._path, self._body, self._headers)
        if response.status != http.client.OK:
            raise error_from_http(response.status, _error_text(self._exchange.rest()), self._origin)

    def _event(self, data: bytes) -> InferResponse:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ProtocolError(
                f"{self._origin.url} sent an event that is no JSON", self._origin.request_id
            ) from error
        if "error" in event:
            raise error_from_text(str(event["error"]), self._origin)
        return read_event(event)


class AsyncHttpTransport:
    """`HttpTransport` for callers that await: each request that waits has a thread."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._blocking = HttpTransport(endpoint)
        self._threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="gptport-http")
        self.url = endpoint.address

    async def infer(self, request: InferRequest, timeout: float | None) -> InferResponse:
        """See `Transport`, as for all that follow."""
        return await self._in_thread(self._blocking.infer, request, timeout)

    def stream(self, request: InferRequest, timeout: float | None) -> AsyncHttpCall:
        return AsyncHttpCall(self._blocking.stream(request, timeout), self._in_thread)

    def send(self, request: InferRequest) -> None:
        self._blocking.send(request)

    async def register(self, registration: AnyRegistration, timeout: float | None) -> None:
        await self._in_thread(self._blocking.register, registration, timeout)

    def release(self, region: str) -> None:
        self._blocking.release(region)

    async def regions(self, timeout: float | None, *, cuda: bool = False) -> list[str]:
        return await self._in_thread(partial(self._blocking.regions, cuda=cuda), timeout)

    async def server_ready(self, timeout: float | None) -> bool:
        return await self._in_thread(self._blocking.server_ready, timeout)

    async def model_ready(self, model: str, timeout: float | None) -> bool:
        return await self._in_thread(self._blocking.model_ready, model, timeout)

    async def model_config(self, model: str, timeout: float | None) -> Any:
        return await self._in_thread(self._blocking.model_config, model, timeout)

    async def repository(self, timeout: float | None) -> list[Any]:
        return await self._in_thread(self._blocking.repository, timeout)

    async def fetch(self, url: str, timeout: float | None) -> bytes:
        return await self._in_thread(fetch, url, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        await asyncio.to_thread(self._blocking.close)
        self._threads.shutdown(wait=False)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            work = self._threads.submit(function, *arguments)
        except RuntimeError as error:  # shut down
            raise closed_error() from error
        return await asyncio.wrap_future(work)


class AsyncHttpCall:
    """An `HttpCall` that is read in threads."""

    def __init__(self, call: HttpCall, in_thread: Callable[..., Any]) -> None:
        self._call = call
        self._in_thread = in_thread

    async def read(self) -> InferResponse | None:
        """See `AsyncCall`."""
        return await self._in_thread(self._call.read)

    def cancel(self) -> None:
        """See `AsyncCall`."""
        self._call.cancel()


def _region(name: str) -> str:
    return f"{_CUDA if in_cuda_memory(name) else _SYSTEM}/region/{quote(name)}"


def _error_text(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


def _broken(error: Exception, origin: Origin) -> GptportError:
    if isinstance(error, TimeoutError):
        return error_from_status("DEADLINE_EXCEEDED", "timeout", origin)
    if isinstance(error, http.client.BadStatusLine) and not isinstance(
        error, OSError
    ):  # what it sent is not for a terminal
        return error_from_status("UNAVAILABLE", "what answers there does not speak HTTP", origin)
    return error_from_status("UNAVAILABLE", f"{type(error).__name__}: {error}", origin)
