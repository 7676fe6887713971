"""Memory of a GPU that a client shares with a server on the same host. Never run on a GPU yet; see docs/client.md."""

from __future__ import annotations

import base64
import contextlib
import importlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gptport_client._region import CUDA, new_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# CUDA shares whole blocks, and cudaMalloc takes what is smaller out of a block with other allocations in it.
_BLOCK = 2 << 20
_mapped: dict[
    str, Any
] = {}  # name → what a server may have mapped, which must not be freed before it has given it up


@dataclass(frozen=True)
class CudaRegistration:
    """A region as Triton's CUDA shared memory extension knows it.

    Attributes:
        name: what requests call it.
        handle: CUDA's, for other processes.
        device: the GPU's number.
        byte_size: of the whole region.
    """

    name: str
    handle: bytes
    device: int
    byte_size: int


class CudaRegion:
    """GPU memory: `rows` of `length` positions of `width` bytes, zeros at first.

    Raises:
        OSError: there is no room for it on GPU number `device`, or no CUDA here.
    """

    advice = "free some of that GPU's memory"

    def __init__(self, rows: int, length: int, width: int, device: int) -> None:
        self.length = length
        self._width = width
        self._shape = (rows, length * width)
        self._device = device
        self._size = -(-rows * length * width // _BLOCK) * _BLOCK
        self._name = new_name(CUDA)
        self._cuda = bindings()
        with self._errors():
            self._memory = self._cuda.create_shared_memory_region(self._name, self._size, device)
        self._free = weakref.finalize(self, self._cuda.destroy_shared_memory_region, self._memory)
        self._free.atexit = False  # the process's memory goes with it
        self._write(np.zeros(self._shape, np.uint8))

    def copy(self, other: Any, used: int) -> None:
        """Take the first `used` positions of each row of another of its kind."""
        rows = np.zeros(self._shape, np.uint8)
        with self._errors():
            theirs = self._cuda.get_contents_as_numpy(other._memory, np.uint8, other._shape)
        rows[:, : used * self._width] = theirs[:, : used * self._width]
        self._write(rows)

    @contextlib.contextmanager
    def registration(self) -> Iterator[CudaRegistration]:
        """What Triton is to be told, once. From then on the memory stays until `give_back`."""
        with self._errors():
            handle = base64.b64decode(self._cuda.get_raw_handle(self._memory))
        self._free.detach()
        _mapped[self._name] = self._memory
        yield CudaRegistration(self._name, handle, self._device, self._size)

    def _write(self, rows: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        with self._errors():
            self._cuda.set_shared_memory_region(self._memory, [rows])

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.CudaSharedMemoryException as error:
            raise OSError(f"GPU {self._device}: {error} ({error.__cause__})") from error


def give_back(name: str) -> None:
    """Free the memory of a region that no server has mapped any more; of others, nothing."""
    if (memory := _mapped.pop(name, None)) is not None:
        bindings().destroy_shared_memory_region(memory)


def bindings() -> Any:
    """What tritonclient has for such memory.

    Raises:
        OSError: what that needs is not installed.
    """
    try:
        return importlib.import_module("tritonclient.utils.cuda_shared_memory")
    except (ImportError, RuntimeError) as error:  # its own, where cuda-python is missing, is a RuntimeError
        raise OSError(
            f"CUDA's Python packages do not load ({error.__cause__ or error}); they come with pip install 'tritonclient[cuda]'"
        ) from error
