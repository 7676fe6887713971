"""What a prompt has in common with a sequence that has ended is copied instead of computed, and the text is the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptport_backend.kv_cache import KVCache
from gptport_backend.manifest import CacheSpec, CacheTensor
from gptport_backend.memory import HostMemory
from gptport_backend.prefix_cache import FEWEST_TOKENS, PrefixCache, common

SPEC = CacheSpec("float32", (CacheTensor("k", "k2", 2, 4), CacheTensor("v", "v2", 2, 4)))
TOKEN_BYTES = 2 * 2 * 4 * 4
PREFIX = "A system prompt that is long enough to be worth keeping. "


def filled(rows: int) -> KVCache:
    """A cache whose row r has r + 1 everywhere."""
    kv = KVCache(SPEC, 8, 256, HostMemory())
    kv.reserve(rows, 256, [])
    for buffer in kv.buffers:
        for row in range(rows):
            buffer.owner[row] = row + 1
    return kv


def test_what_was_kept_is_found_and_filled_in() -> None:
    kv, cache = filled(2), PrefixCache(SPEC, HostMemory(), 1 << 20)
    tokens = list(range(50))
    cache.keep(tokens, kv, 1)
    kept, count = cache.find(np.array([*tokens[:40], 7, 7]))
    assert count == 40
    cache.fill(kept, count, kv, 0)
    for buffer in kv.buffers:
        assert (buffer.owner[0, :, :40] == 2).all()
        assert (buffer.owner[0, :, 40:] == 1).all()


def test_short_beginnings_are_not_worth_it() -> None:
    kv, cache = filled(1), PrefixCache(SPEC, HostMemory(), 1 << 20)
    cache.keep(range(FEWEST_TOKENS - 1), kv, 0)
    assert cache.bytes == 0
    cache.keep(range(FEWEST_TOKENS), kv, 0)
    assert cache.find(np.arange(FEWEST_TOKENS - 1)) is None
    assert cache.find(np.arange(FEWEST_TOKENS))[1] == FEWEST_TOKENS


@settings(max_examples=60)
@given(
    limit=st.integers(0, 6 * 40),
    sequences=st.lists(
        st.tuples(st.sampled_from([0, 20, 34, 38]), st.integers(33, 60), st.integers(1, 3)), max_size=12
    ),
)
def test_never_more_than_the_limit_and_always_the_longest(
    limit: int, sequences: list[tuple[int, int, int]]
) -> None:
    kv, cache = filled(1), PrefixCache(SPEC, HostMemory(), limit * TOKEN_BYTES)
    for shared, length, rest in sequences:
        tokens = [0] * shared + [rest] * (length - shared)
        before = [kept.tokens for kept in cache._kept]
        cache.keep(tokens, kv, 0)
        assert cache.bytes <= limit * TOKEN_BYTES
        prompt = np.array(tokens)
        found = cache.find(prompt)
        if len(tokens) <= limit:
            assert found[1] == len(tokens)  # what was kept last is there
        else:
            longest = max((common(each, prompt) for each in before), default=0)
            assert (found[1] if found else 0) == (longest if longest >= FEWEST_TOKENS else 0)
    lengths = [kept.tokens.tolist() for kept in cache._kept]
    assert not [a for a in lengths for b in lengths if a is not b and b[: len(a)] == a]  # none within another


@pytest.mark.parametrize("inputs", [{}, {"temperature": 1.0, "seed": 5}], ids=["greedy", "sampled"])
def test_a_conversation_is_the_same_with_and_without(serve, inputs) -> None:
    def talk(tiny) -> list[str]:
        history, answers = PREFIX, []
        for question in ("One?", "Two?", "Three, and longer than a chunk of the prefill?"):
            history += question
            answer = tiny.ask(text_input=history, max_tokens=12, **inputs).wait()
            history += answer.text
            answers.append(answer.text)
        return answers

    with_it, without = serve(max_prefill_tokens=16), serve(prefix_cache_bytes=0)
    assert talk(with_it) == talk(without)
    assert with_it.engine._tally.reused_tokens > 2 * len(PREFIX)
    assert without.engine._tally.reused_tokens == 0
    assert without.engine._prefixes.bytes == 0


def test_many_at_once_share_what_one_has_computed(serve) -> None:
    tiny, alone = serve(max_batch_size=4), serve(prefix_cache_bytes=0)
    prompts = [PREFIX + str(number) for number in range(10)]
    expected = [alone.ask(text_input=prompt, max_tokens=10).wait().text for prompt in prompts]
    tiny.ask(text_input=PREFIX, max_tokens=2).wait()
    computed = tiny.engine._tally.input_tokens
    answers = [tiny.ask(text_input=prompt, max_tokens=10) for prompt in prompts]
    assert [answer.wait().text for answer in answers] == expected
    assert tiny.engine._tally.input_tokens - computed <= 2 * len(prompts)


def test_what_was_cancelled_halfway_is_of_use_too(serve) -> None:
    tiny = serve(max_prefill_tokens=16)
    first = tiny.ask(text_input=PREFIX + "x" * 40, max_tokens=100)
    first.cancelled = True
    first.wait()
    expected = serve(prefix_cache_bytes=0).ask(text_input=PREFIX + "x" * 40, max_tokens=5).wait().text
    assert tiny.ask(text_input=PREFIX + "x" * 40, max_tokens=5).wait().text == expected


def test_a_prompt_that_is_wholly_known_still_gives_its_logits(serve) -> None:
    tiny = serve()
    first = tiny.ask(text_input=PREFIX, max_tokens=4).wait()
    again = tiny.ask(text_input=PREFIX, max_tokens=4).wait()
    assert again.token_ids == first.token_ids


def test_what_layers_of_unlike_shapes_have_is_kept_apart() -> None:
    shapes = [(2, 4), (1, 6), (2, 4), (1, 6)]
    spec = CacheSpec("float32", tuple(CacheTensor(f"{i}", f"{i}'", *each) for i, each in enumerate(shapes)))
    kv = KVCache(spec, 2, 256, HostMemory())
    kv.reserve(2, 256, [])
    for number, buffer in enumerate(kv.buffers, 1):
        buffer.owner[0] = number
    cache = PrefixCache(spec, HostMemory(), 40 * spec.token_bytes)
    cache.keep(range(40), kv, 0)
    assert cache.bytes == 40 * (8 + 6 + 8 + 6) * 4
    found = cache.find(np.arange(40))
    assert found
    cache.fill(*found, kv, 1)
    for number, buffer in enumerate(kv.buffers, 1):
        assert (buffer.owner[1, :, :40] == number).all()
        assert not buffer.owner[1, :, 40:].any()
