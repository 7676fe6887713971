"""The part of CUDA's Python bindings that tritonclient calls, in host memory, so that its own code runs without a GPU."""

# ruff: noqa: ARG002, N802, N815 - the names and arguments are CUDA's
from __future__ import annotations

import ctypes
import enum
import sys
from types import ModuleType, SimpleNamespace

import numpy as np

HANDLE_SIZE = 64


class _Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class _Result(enum.IntEnum):
    CUDA_SUCCESS = 0


class _Handle:
    """CUDA's handle of memory for another process: 64 bytes at an address."""

    def __init__(self, content: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(content, HANDLE_SIZE)

    def getPtr(self) -> int:
        return ctypes.addressof(self._buffer)


class ToyCuda:
    """One device with some memory.

    Attributes:
        allocated: address → content.
        open: addresses that another process has opened.
        freed_too_early: addresses that were freed while they were open, which CUDA leaves undefined.
        room: bytes that are left.
    """

    def __init__(self, room: int = 1 << 28) -> None:
        self.allocated: dict[int, np.ndarray] = {}
        self.open: set[int] = set()
        self.freed_too_early: list[int] = []
        self.room = room
        self.device = 0

    def opened(self, handle: bytes) -> np.ndarray:
        """The memory behind a handle, as another process has it that opens it."""
        address = int.from_bytes(handle[:8], "little")
        self.open.add(address)
        return self.allocated[address]

    def closed(self, memory: np.ndarray) -> None:
        """The other process closes it."""
        self.open.discard(memory.ctypes.data)

    def install(self, monkeypatch) -> None:
        """Be the module `cuda.bindings` while the test runs; tritonclient's is loaded anew."""
        runtime, driver = ModuleType("cuda.bindings.runtime"), ModuleType("cuda.bindings.driver")
        runtime.cudaError_t, driver.CUresult = _Error, _Result
        runtime.CUDA_IPC_HANDLE_SIZE = HANDLE_SIZE
        runtime.cudaIpcMemHandle_t = _Handle
        runtime.cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
        runtime.cudaDeviceAttr = SimpleNamespace(cudaDevAttrUnifiedAddressing=41)
        for name in dir(self):
            if name.startswith("cuda"):
                setattr(runtime, name, getattr(self, name))
        driver.cuDeviceGet = lambda device: (_Result.CUDA_SUCCESS, device)
        driver.cuDevicePrimaryCtxGetState = lambda _: (_Result.CUDA_SUCCESS, 0, 1)
        package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
        package.bindings, bindings.runtime, bindings.driver = bindings, runtime, driver
        for module in (package, bindings, runtime, driver):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for name in ("", "._utils"):  # what is set here is gone after the test
            name = f"tritonclient.utils.cuda_shared_memory{name}"
            monkeypatch.setitem(sys.modules, name, None)
            del sys.modules[name]

    def cudaGetDevice(self):
        return _Error.cudaSuccess, self.device

    def cudaSetDevice(self, device):
        self.device = device
        return (_Error.cudaSuccess,)

    def cudaMalloc(self, size):
        if size > self.room:
            return _Error.cudaErrorMemoryAllocation, None
        self.room -= size
        memory = np.full(size, 0xFF, np.uint8)  # a GPU's is not zeros
        self.allocated[memory.ctypes.data] = memory
        return _Error.cudaSuccess, memory.ctypes.data

    def cudaFree(self, address):
        if address in self.open:
            self.freed_too_early.append(address)
        self.room += self.allocated.pop(address).nbytes
        return (_Error.cudaSuccess,)

    def cudaIpcGetMemHandle(self, address):
        return _Error.cudaSuccess, _Handle(address.to_bytes(8, "little"))

    def cudaDeviceGetAttribute(self, attribute, device):
        return _Error.cudaSuccess, 1

    def cudaStreamCreate(self):
        return _Error.cudaSuccess, object()

    def cudaStreamDestroy(self, stream):
        return (_Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream):
        return (_Error.cudaSuccess,)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        ctypes.memmove(target, source, size)
        return (_Error.cudaSuccess,)

    def cudaGetErrorString(self, error):
        return _Error.cudaSuccess, error.name.encode()
