"""Slots and length grow in buckets and keep what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from gptport_backend.element_types import bound
from gptport_backend.errors import LoadError
from gptport_backend.kv_cache import KVCache
from gptport_backend.manifest import CacheSpec, CacheTensor
from gptport_backend.memory import HostMemory
from gptport_backend.scheduler import Move

SPEC = CacheSpec("float32", (CacheTensor("k", "k2", 2, 4), CacheTensor("v", "v2", 2, 4)))
UNLIKE = CacheSpec("float32", (CacheTensor("k", "k2", 2, 4), CacheTensor("k3", "k4", 1, 6)))


def cache() -> KVCache:
    return KVCache(SPEC, max_slots=6, max_length=1000, memory=HostMemory())


def test_it_begins_with_nothing_and_takes_the_smallest_bucket() -> None:
    kv = cache()
    assert kv.bytes == 0
    kv.reserve(1, 10, [])
    assert (kv.slots, kv.length, kv.bytes) == (1, 256, 2 * 2 * 256 * 4 * 4)


def test_buckets_double_up_to_the_limits() -> None:
    kv = cache()
    sizes = []
    for slots, length in [(1, 1), (2, 256), (3, 257), (5, 513), (6, 1000)]:
        kv.reserve(slots, length, [])
        sizes.append((kv.slots, kv.length))
    assert sizes == [(1, 256), (2, 256), (4, 512), (6, 1000), (6, 1000)]


def test_growing_keeps_what_was_used_and_says_that_addresses_changed() -> None:
    kv = cache()
    kv.reserve(2, 10, [])
    for number, buffer in enumerate(kv.buffers, 1):
        buffer.owner[1, :, :7] = number
    generation = kv.generation
    kv.reserve(3, 300, [0, 7, 0])
    assert kv.generation > generation
    assert [float(buffer.owner[1, :, :7].min()) for buffer in kv.buffers] == [1, 2]
    assert all(np.isfinite(buffer.owner).all() for buffer in kv.buffers)


def test_what_fits_already_stays_where_it_is() -> None:
    kv = cache()
    kv.reserve(2, 200, [])
    generation = kv.generation
    kv.reserve(1, 256, [])
    assert kv.generation == generation


def test_a_move_copies_the_used_part_of_a_row() -> None:
    kv = cache()
    kv.reserve(2, 10, [])
    kv.buffers[0].owner[1] = 5
    kv.move(Move(source=1, target=0), used=3)
    assert kv.buffers[0].owner[0, :, :3].min() == 5
    assert kv.buffers[0].owner[0, :, 3:].max() == 0


def test_rows_lie_where_their_addresses_say() -> None:
    kv = cache()
    kv.reserve(2, 10, [])
    buffer = kv.buffers[0]
    assert buffer.row_address(1) == buffer.owner[1].ctypes.data


def test_the_memory_is_no_shared_file() -> None:
    kv = cache()
    kv.reserve(2, 10, [])
    assert "p" in permissions(kv.buffers[0].address)


def permissions(address: int) -> str:
    """Of the mapping that `address` lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, found = line.split()[:2]
        first, end = (int(part, 16) for part in span.split("-"))
        if first <= address < end:
            return found
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_release_gives_everything_back() -> None:
    kv = cache()
    kv.reserve(2, 10, [])
    kv.release()
    assert (kv.bytes, kv.slots, kv.length) == (0, 0, 0)


def test_a_dtype_that_no_graph_has_is_refused() -> None:
    spec = CacheSpec("float8", ())
    message = "the KV cache is of dtype 'float8'; the backend takes float32, float16, bfloat16"
    with pytest.raises(LoadError, match=message):
        KVCache(spec, 1, 1, HostMemory())


def test_bfloat16_is_kept_and_bound_as_such() -> None:
    """A graph that copies its past has the same bytes in its present, in another row's memory."""
    kv = KVCache(CacheSpec("bfloat16", (CacheTensor("past", "present", 2, 4),)), 4, 1000, HostMemory())
    kv.reserve(2, 10, [])
    (buffer,) = kv.buffers
    assert kv.bytes == 2 * 2 * 256 * 4 * 2
    buffer.owner[0] = np.arange(buffer.owner[0].size, dtype=np.uint16).reshape(buffer.shape[1:])
    content = buffer.owner[0].copy()
    kv.move(Move(0, 1), 7)
    np.testing.assert_array_equal(buffer.owner[1, :, :7], content[:, :7])

    shape = ["batch", *buffer.shape[1:]]
    values = [
        helper.make_tensor_value_info(name, TensorProto.BFLOAT16, shape) for name in ("past", "present")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["past"], ["present"])], "copy", *([v] for v in values)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    binding = session.io_binding()
    for bind, name, row in ((binding.bind_input, "past", 0), (binding.bind_output, "present", 1)):
        bind(name, "cpu", 0, bound("bfloat16"), (1, *buffer.shape[1:]), buffer.row_address(row))
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(buffer.owner[1], content)


def test_layers_may_have_unlike_shapes() -> None:
    kv = KVCache(UNLIKE, 4, 1000, HostMemory(), budget=2 * 512 * (8 + 6) * 4)
    assert kv.fits(2, 512)
    assert not kv.fits(2, 513)
    kv.reserve(2, 10, [])
    assert [buffer.shape for buffer in kv.buffers] == [(2, 2, 256, 4), (2, 1, 256, 6)]
    for number, buffer in enumerate(kv.buffers, 1):
        buffer.owner[1, :, :7] = number
    kv.reserve(2, 300, [0, 7])
    kv.move(Move(1, 0), 7)
    assert [buffer.shape for buffer in kv.buffers] == [(2, 2, 512, 4), (2, 1, 512, 6)]
    assert kv.bytes == 2 * 512 * (8 + 6) * 4
    for number, buffer in enumerate(kv.buffers, 1):
        assert (buffer.owner[:, :, :7] == number).all()
        assert not buffer.owner[:, :, 7:].any()
