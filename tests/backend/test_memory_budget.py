"""A KV cache of a fixed size: requests wait or give their rows up for a while, and all get the text that they get alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptport_backend.errors import LoadError
from gptport_backend.kv_cache import KVCache
from gptport_backend.manifest import CacheSpec, CacheTensor
from gptport_backend.memory import HostMemory

SPEC = CacheSpec("float32", (CacheTensor("k", "k2", 2, 4), CacheTensor("v", "v2", 2, 4)))
TOKEN_BYTES = 2 * 2 * 4 * 4


@settings(max_examples=80)
@given(
    rows_of_500=st.integers(1, 8),
    wanted=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 500)), max_size=8),
)
def test_the_budget_is_never_exceeded(rows_of_500: int, wanted: list[tuple[int, int]]) -> None:
    kv = KVCache(SPEC, 6, 500, HostMemory(), rows_of_500 * 500 * TOKEN_BYTES)
    for slots, length in wanted:
        if kv.fits(slots, length):
            kv.reserve(slots, length, [])
            assert kv.slots >= slots
            assert kv.length >= length
        assert kv.bytes <= kv.budget
    assert kv.fits(1, 500)


def test_a_budget_for_less_than_one_sequence_is_refused() -> None:
    message = r"may take 63999 bytes, and a sequence of 1000 tokens takes 64000: set kv_cache_bytes"
    with pytest.raises(LoadError, match=message):
        KVCache(SPEC, 6, 1000, HostMemory(), 1000 * TOKEN_BYTES - 1)


def test_what_is_free_is_a_number_of_bytes() -> None:
    assert 1 << 24 < HostMemory().free() < 1 << 50


def one_sequence(tiny) -> int:
    """Bytes of the longest sequence."""
    cache = tiny.manifest.cache
    return tiny.manifest.max_length * cache.token_bytes


@pytest.mark.parametrize("prefix_cache_bytes", [0, 1 << 20], ids=["computed anew", "copied"])
@pytest.mark.parametrize("sampled", [False, True])
def test_everyone_gets_the_text_that_he_gets_alone(serve, sampled, prefix_cache_bytes) -> None:
    alone = serve(prefix_cache_bytes=0)
    length = alone.manifest.max_length
    narrow = serve(
        kv_cache_bytes=one_sequence(alone), prefix_cache_bytes=prefix_cache_bytes, max_prefill_tokens=64
    )
    asked = [
        {
            "text_input": f"prompt {number} " + "x" * (17 * number),
            "max_tokens": length,
            "ignore_eos": True,
            "stream": number % 2 == 0,
            "priority": number % 3,
            **({"temperature": 1.0, "seed": number} if sampled else {}),
        }
        for number in range(6)
    ]
    expected = [alone.ask(**each).wait().token_ids for each in asked]
    answers = [narrow.ask(**each) for each in asked]
    assert [answer.wait().token_ids for answer in answers] == expected
    assert {answer.error for answer in answers} == {""}
    assert narrow.engine._tally.preemptions > 0
    narrow.engine.close(5)  # the loop has taken note of the last end
    assert not narrow.engine._scheduler.busy


def test_who_came_first_is_not_the_one_that_waits(serve) -> None:
    tiny = serve()
    narrow = serve(kv_cache_bytes=one_sequence(tiny), max_prefill_tokens=64)
    answers = [narrow.ask(text_input=f"{number}", max_tokens=10_000, ignore_eos=True) for number in range(4)]
    ended = []
    for answer in answers:
        answer.wait()
        ended.append(answer)
        assert all(each._ended.is_set() for each in ended)
    assert narrow.engine._tally.requests["length"] == 4
