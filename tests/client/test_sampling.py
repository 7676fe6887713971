"""Tokens are drawn as docs/protocol.md says, to the letter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptport_client import SamplingParams, ServerError
from gptport_client._sampling import Sampler, likeliest
from toy_model import reference_token

# Few distinct values, so that many are equal.
LOGITS = st.lists(st.integers(-6, 6), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float32) / 2
)


@settings(max_examples=200)
@given(
    logits=LOGITS,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_draw_is_the_protocols(logits, temperature, top_k, top_p, seed):
    sampler = Sampler(SamplingParams(1, temperature, top_k, top_p, seed))
    random = np.random.Generator(np.random.Philox(key=seed))
    for _ in range(3):
        expected = reference_token(logits, temperature, top_k, float(np.float32(top_p)), random.random())
        assert sampler.draw(logits) == expected


@pytest.mark.parametrize("scale", [0.01, 1, 4])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [0, 50, 3000])
def test_a_large_vocabulary_is_no_exception(scale, top_p, top_k):
    logits = (np.random.default_rng(1).normal(size=5000) * scale).astype(np.float32)
    sampler = Sampler(SamplingParams(1, 1.0, top_k, top_p, 5))
    random = np.random.Generator(np.random.Philox(key=5))
    for _ in range(10):
        assert sampler.draw(logits) == reference_token(
            logits, 1.0, top_k, float(np.float32(top_p)), random.random()
        )


def test_the_first_of_equals_is_the_lower_id():
    logits = np.array([1, 3, 2, 3, 2, 3], np.float32)
    assert Sampler(SamplingParams()).draw(logits) == 1
    assert likeliest(logits, 2).tolist() == [1, 3]
    assert likeliest(logits, 4).tolist() == [1, 3, 5, 2]
    assert likeliest(logits, 99).tolist() == [1, 3, 5, 2, 4, 0]


def test_the_same_seed_gives_the_same_tokens_and_no_seed_gives_others():
    logits = np.zeros(10_000, np.float32)

    def draws(seed):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.draw(logits) for _ in range(5)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(None) != draws(None)


@pytest.mark.parametrize("temperature", [1e-45, 1e-50, 1e-39])
def test_a_tiny_temperature_is_greedy(temperature):
    assert Sampler(SamplingParams(temperature=temperature)).draw(np.array([1, 50, 3], np.float32)) == 1


def test_logits_that_are_no_numbers_are_an_error():
    with pytest.raises(ServerError, match="not finite numbers"):
        Sampler(SamplingParams()).draw(np.array([1, np.nan], np.float32))
