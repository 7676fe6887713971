"""CudaMemory against a stand-in for the CUDA runtime, in host memory, that insists on being called as CUDA is."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest

from gptport_backend import memory as memories
from gptport_backend.errors import BackendError
from gptport_backend.kv_cache import KVCache
from gptport_backend.manifest import CacheSpec, CacheTensor
from gptport_backend.memory import CudaMemory, HostMemory
from gptport_backend.scheduler import Move

SPEC = CacheSpec("float16", (CacheTensor("k", "k2", 2, 4), CacheTensor("v", "v2", 3, 8)))
DEVICE = 1
OUT_OF_MEMORY = 2


class Runtime:
    """libcudart's functions that are used, with its signatures; the device's memory is the host's."""

    def __init__(self) -> None:
        self._devices: dict[int, int] = {}  # of each thread
        self.status = 0

    def cudaSetDevice(self, device: int) -> int:  # noqa: N802 - its name
        self._devices[threading.get_ident()] = device
        return self.status

    def cudaStreamSynchronize(self, stream: Any) -> int:  # noqa: N802
        assert stream.value is None
        return self._of_device()

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = 1000, 4000
        return self._of_device()

    def cudaMemset(self, pointer: Any, value: int, count: Any) -> int:  # noqa: N802
        ctypes.memset(pointer.value, value, count.value)
        return self._of_device()

    def cudaMemcpy(self, target: Any, source: Any, count: Any, kind: int) -> int:  # noqa: N802
        assert kind == 2  # device to host
        ctypes.memmove(target.value, source.value, count.value)
        return self._of_device()

    def cudaMemcpy2D(  # noqa: N802
        self,
        target: Any,
        target_pitch: Any,
        source: Any,
        source_pitch: Any,
        width: Any,
        height: Any,
        kind: int,
    ) -> int:
        assert kind == 3  # device to device
        assert width.value <= min(target_pitch.value, source_pitch.value)
        for row in range(height.value):
            at = target.value + row * target_pitch.value, source.value + row * source_pitch.value
            ctypes.memmove(*at, width.value)
        return self._of_device()

    def _of_device(self) -> int:
        assert self._devices[threading.get_ident()] == DEVICE
        return self.status

    class cudaGetErrorString:  # noqa: N801
        restype: Any = None

        def __new__(cls, status: int) -> Any:
            assert (cls.restype, status) == (ctypes.c_char_p, OUT_OF_MEMORY)
            return b"out of memory"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    made = Runtime()
    monkeypatch.setattr(memories, "_cuda_runtime", lambda: made)
    allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def on_the_host(shape: list[int], element_type: Any, device: str, device_id: int) -> Any:
        assert (device, device_id) == ("cuda", DEVICE)
        return allocate(shape, element_type)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", on_the_host)
    return made


def fill(cache: KVCache, seed: int) -> None:
    """The same numbers in every cache of that size."""
    random = np.random.default_rng(seed)
    for buffer in cache.buffers:
        size = buffer.shape[0] * buffer.row_bytes
        content = random.integers(0, 256, size, np.uint8).tobytes()
        ctypes.memmove(buffer.address, content, size)


def content(cache: KVCache, row: int) -> list[Any]:
    return [cache._memory.read(buffer, row, "float16").tobytes() for buffer in cache.buffers]


@pytest.mark.usefixtures("runtime")
def test_a_cache_moves_and_grows_as_on_the_host() -> None:
    caches = [KVCache(SPEC, 6, 1000, memory) for memory in (CudaMemory(DEVICE), HostMemory())]
    for cache in caches:
        cache.reserve(3, 10, [])
    assert content(caches[0], 2) == content(caches[1], 2)  # zeros
    for cache in caches:
        fill(cache, 0)
        cache.move(Move(2, 0), 7)
        cache.reserve(4, 300, [7, 200, 0])
    for row in range(4):
        assert content(caches[0], row) == content(caches[1], row)
    assert any(any(each) for each in content(caches[0], 1))


@pytest.mark.usefixtures("runtime")
@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_memory_is_allocated_as_zeros_of_a_dtype(dtype: str) -> None:
    buffer = CudaMemory(DEVICE).allocate((3, 2, 5, 4), dtype)
    size = {"float16": 2, "float32": 4, "bfloat16": 2}[dtype]
    assert (buffer.itemsize, buffer.row_bytes) == (size, 2 * 5 * 4 * size)
    assert ctypes.string_at(buffer.address, 3 * buffer.row_bytes) == bytes(3 * buffer.row_bytes)


@pytest.mark.usefixtures("runtime")
def test_another_thread_may_use_it() -> None:
    """The engine's loop does, which CUDA has given the first device."""
    memory = CudaMemory(DEVICE)
    memory.wait()
    with ThreadPoolExecutor(1) as threads:
        threads.submit(memory.wait).result()


def test_what_cuda_says_is_the_error(runtime: Runtime) -> None:
    memory = CudaMemory(DEVICE)
    assert memory.free() == 1000
    runtime.status = OUT_OF_MEMORY
    with pytest.raises(BackendError, match="CUDA failed: out of memory"):
        memory.free()


def test_a_runtime_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match="libcudart is not to be found; install"):
        CudaMemory(0)
