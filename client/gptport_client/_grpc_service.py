"""Triton's gRPC service, as far as it is the same for callers that block and for callers that await."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2

from gptport_client._cuda_region import CudaRegistration
from gptport_client._errors import GptportError, InvalidRequest
from gptport_client._region import in_cuda_memory
from gptport_client._status import Origin, error_from_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptport_client._endpoint import TLS, Endpoint
    from gptport_client._message import InferRequest
    from gptport_client._releases import Releases
    from gptport_client._step_cache import AnyRegistration

# A proxy before several servers reads it to keep the requests of a sequence together; Triton ignores it.
SEQUENCE_HEADER = "gptport-sequence"

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


class GrpcService(ABC):
    """The questions with one answer. Each method gives what `_unary` gives: the answer, or what is awaited for it."""

    _releases: Releases

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._metadata = endpoint.headers

    @property
    def url(self) -> str:
        """`host:port`, for messages."""
        return self._endpoint.address

    def server_ready(self, timeout: float | None) -> Any:
        """See `Transport`, as for all that follow."""
        return self._unary(
            "ServerReady", service_pb2.ServerReadyRequest(), timeout, lambda answer: answer.ready
        )

    def model_ready(self, model: str, timeout: float | None) -> Any:
        request = service_pb2.ModelReadyRequest(name=model)
        return self._unary("ModelReady", request, timeout, lambda answer: answer.ready, model)

    def model_config(self, model: str, timeout: float | None) -> Any:
        request = service_pb2.ModelConfigRequest(name=model)
        return self._unary("ModelConfig", request, timeout, lambda answer: answer.config, model)

    def repository(self, timeout: float | None) -> Any:
        request = service_pb2.RepositoryIndexRequest()
        return self._unary("RepositoryIndex", request, timeout, lambda answer: list(answer.models))

    def register(self, registration: AnyRegistration, timeout: float | None) -> Any:
        self._releases.hold(registration.name)
        if isinstance(registration, CudaRegistration):
            cuda_request = service_pb2.CudaSharedMemoryRegisterRequest(
                name=registration.name,
                raw_handle=registration.handle,
                device_id=registration.device,
                byte_size=registration.byte_size,
            )
            return self._unary("CudaSharedMemoryRegister", cuda_request, timeout, lambda _: None)
        request = service_pb2.SystemSharedMemoryRegisterRequest(
            name=registration.name, key=registration.key, byte_size=registration.byte_size
        )
        return self._unary("SystemSharedMemoryRegister", request, timeout, lambda _: None)

    def regions(self, timeout: float | None, *, cuda: bool = False) -> Any:
        kind = "Cuda" if cuda else "System"
        request = getattr(service_pb2, f"{kind}SharedMemoryStatusRequest")()
        return self._unary(f"{kind}SharedMemoryStatus", request, timeout, lambda answer: list(answer.regions))

    def _unregister(self, region: str, timeout: float | None) -> Any:
        kind = "Cuda" if in_cuda_memory(region) else "System"
        request = getattr(service_pb2, f"{kind}SharedMemoryUnregisterRequest")(name=region)
        return self._unary(f"{kind}SharedMemoryUnregister", request, timeout, lambda _: None)

    @abstractmethod
    def _unary(
        self, method: str, request: Any, timeout: float | None, pick: Callable[[Any], Any], model: str = ""
    ) -> Any:
        """Call a method of the service and pick from its answer."""

    def _headers(self, request: InferRequest) -> tuple[tuple[str, str], ...]:
        """The endpoint's headers, and that of the request's sequence if it belongs to one."""
        sequence = request.parameters.get("sequence_id")
        if sequence is None:
            return self._metadata
        return (*self._metadata, (SEQUENCE_HEADER, str(sequence.int64_param)))

    def _origin(self, request: InferRequest) -> Origin:
        return Origin(self.url, request.model_name, request.id)


def credentials(tls: TLS) -> Any:
    """gRPC's credentials for a channel.

    Raises:
        InvalidRequest: a file cannot be read.
    """
    try:
        ca, certificate, key = (
            None if path is None else path.read_bytes() for path in (tls.ca, tls.certificate, tls.key)
        )
    except OSError as error:
        raise InvalidRequest(f"tls has {error.filename}, which cannot be read: {error.strerror}") from error
    return grpc.ssl_channel_credentials(ca, key, certificate)


def translate(error: Any, origin: Origin) -> GptportError:
    """The error for a `grpc.RpcError`."""
    return error_from_status(error.code().name, error.details() or "", origin)


def closed_error() -> GptportError:
    """The error for a request on a client that was closed."""
    return InvalidRequest("this client is closed; make a new one")
