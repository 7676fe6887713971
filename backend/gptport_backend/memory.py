"""Memory of a device, behind the few operations that the KV cache needs; a new kind of device goes here."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnxruntime

from gptport_backend.element_types import bound, stored
from gptport_backend.errors import BackendError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

Shape = tuple[int, int, int, int]
LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container
_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Buffer:
    """A contiguous array of `shape [slots, heads, length, dim]` at `address`; `owner` keeps it alive."""

    address: int
    shape: Shape
    itemsize: int
    owner: Any

    def row_address(self, row: int) -> int:
        """Where `row` begins."""
        return self.address + row * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one slot."""
        _, heads, length, dim = self.shape
        return heads * length * dim * self.itemsize


class Memory(Protocol):
    """Allocates buffers on one device and copies between them."""

    device: str  # as onnxruntime names it
    device_id: int
    share: float  # of what is free, that a KV cache may take

    def free(self) -> int:
        """Bytes that can be allocated now."""

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        """A new buffer, zeroed: kernels may read what they mask out, and zero times NaN is NaN."""

    def copy(self, source: Buffer, source_row: int, target: Buffer, target_row: int, used: int) -> None:
        """Copy the first `used` positions of a row; the buffers may differ in length."""

    def read(self, buffer: Buffer, row: int, dtype: DTypeLike) -> NDArray[Any]:
        """A row of a buffer of `dtype`, copied to an array `[heads, length, dim]` on the host."""

    def wait(self) -> None:
        """Return when all that was zeroed and copied is there: a graph may run in a stream that does not wait for it."""


class HostMemory:
    """The memory of the CPU."""

    device = "cpu"
    device_id = 0
    share = 0.5

    def free(self) -> int:
        """What the kernel thinks can be had without swapping, or less if a control group has a limit."""
        available = _available()
        if not LIMIT.is_file() or (limit := LIMIT.read_text().strip()) == "max":
            return available
        return max(0, min(available, int(limit) - int(LIMIT.with_name("memory.current").read_text())))

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        # Pages of its own, which go back to the system when it is freed; malloc would keep most of them. Private ones:
        # shared ones, mmap's default, are files to the kernel, slower to get and, from 64 tokens on, to attend to.
        size = math.prod(shape) * stored(dtype).itemsize
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(pages, stored(dtype)).reshape(shape)
        return Buffer(array.ctypes.data, shape, array.itemsize, array)

    def copy(self, source: Buffer, source_row: int, target: Buffer, target_row: int, used: int) -> None:
        target.owner[target_row, :, :used] = source.owner[source_row, :, :used]

    def read(self, buffer: Buffer, row: int, dtype: DTypeLike) -> NDArray[Any]:
        return np.array(buffer.owner[row], dtype)

    def wait(self) -> None:
        pass


class CudaMemory:
    """The memory of a CUDA device. onnxruntime allocates it, the CUDA runtime copies within it, in its default stream.

    https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html
    """

    device = "cuda"
    share = 0.8
    _DEVICE_TO_HOST, _DEVICE_TO_DEVICE = 2, 3

    def __init__(self, device_id: int) -> None:
        self.device_id = device_id
        self._runtime = _cuda_runtime()

    def free(self) -> int:
        """What the device has left."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def allocate(self, shape: Shape, dtype: str) -> Buffer:
        value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
            list(shape), bound(dtype), "cuda", self.device_id
        )
        buffer = Buffer(value.data_ptr(), shape, stored(dtype).itemsize, value)
        size = ctypes.c_size_t(shape[0] * buffer.row_bytes)
        self._call("cudaMemset", ctypes.c_void_p(buffer.address), 0, size)
        return buffer

    def copy(self, source: Buffer, source_row: int, target: Buffer, target_row: int, used: int) -> None:
        _, heads, source_length, dim = source.shape
        position_bytes = dim * source.itemsize
        self._call(
            "cudaMemcpy2D",
            ctypes.c_void_p(target.row_address(target_row)),
            ctypes.c_size_t(target.shape[2] * position_bytes),
            ctypes.c_void_p(source.row_address(source_row)),
            ctypes.c_size_t(source_length * position_bytes),
            ctypes.c_size_t(used * position_bytes),
            ctypes.c_size_t(heads),
            self._DEVICE_TO_DEVICE,
        )

    def read(self, buffer: Buffer, row: int, dtype: DTypeLike) -> NDArray[Any]:
        array = np.empty(buffer.shape[1:], dtype)
        self._call(
            "cudaMemcpy",
            ctypes.c_void_p(array.ctypes.data),
            ctypes.c_void_p(buffer.row_address(row)),
            ctypes.c_size_t(buffer.row_bytes),
            self._DEVICE_TO_HOST,
        )
        return array

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", ctypes.c_void_p())

    def _call(self, function: str, *arguments: Any) -> None:
        """Call the runtime for the device, which is chosen for each thread anew."""
        status = self._runtime.cudaSetDevice(self.device_id) or getattr(self._runtime, function)(*arguments)
        if status:
            self._runtime.cudaGetErrorString.restype = ctypes.c_char_p
            raise BackendError(f"CUDA failed: {self._runtime.cudaGetErrorString(status).decode()}")


def trim() -> None:
    """Give pages that malloc holds, and nothing uses, back to the system; a C library other than glibc does as it does."""
    if hasattr(_LIBC, "malloc_trim"):
        _LIBC.malloc_trim(0)


def _available() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _cuda_runtime() -> ctypes.CDLL:
    """The CUDA runtime that onnxruntime loaded, or the newest one installed."""
    for name in ("libcudart.so.13", "libcudart.so.12", "libcudart.so"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BackendError("libcudart is not to be found; install the CUDA runtime that onnxruntime-gpu needs")
