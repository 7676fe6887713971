"""Sampling is the algorithm of docs/protocol.md, however much of it is skipped for speed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptport_backend.logits import HostLogits
from gptport_backend.ranking import likeliest
from gptport_backend.request import SamplingParameters
from gptport_backend.sampling import Sampler, sample


def by_the_book(logits: np.ndarray[Any, Any], parameters: SamplingParameters, count: int) -> list[int]:
    """The protocol's text, word by word; `count` draws from the same logits."""
    random = np.random.Generator(np.random.Philox(key=parameters.seed))
    tokens = []
    for _ in range(count):
        if parameters.temperature == 0:
            tokens.append(int(np.argmax(logits)))
            continue
        scaled = logits / np.float32(parameters.temperature)
        order = np.argsort(-scaled, kind="stable")
        if parameters.top_k:
            order = order[: parameters.top_k]
        weights = np.exp(scaled[order].astype(np.float64) - float(scaled.max()))
        probabilities = weights / weights.sum()
        kept, mass = 0, 0.0
        while kept < len(order) and (kept == 0 or mass < parameters.top_p):
            mass += probabilities[kept]
            kept += 1
        kept = max(1, min(kept, int(np.sum(weights >= parameters.min_p))))
        probabilities, order = probabilities[:kept], order[:kept]
        if parameters.typical_p < 1:
            typical = by_surprise(probabilities / probabilities.sum(), parameters.typical_p)
            probabilities, order = probabilities[typical], order[typical]
        reached = np.cumsum(probabilities)
        tokens.append(int(order[min(int(np.sum(reached <= random.random() * reached[-1])), len(order) - 1)]))
    return tokens


def by_surprise(probabilities: np.ndarray[Any, Any], typical_p: float) -> list[int]:
    """The places of those nearest to the entropy that reach `typical_p`, ascending."""
    surprise = -np.log(probabilities)
    nearest = np.argsort(np.abs(surprise - np.sum(probabilities * surprise)), kind="stable")
    return sorted(nearest[: int(np.sum(np.cumsum(probabilities[nearest]) < typical_p)) + 1].tolist())


@settings(max_examples=60)
@given(
    vocabulary=st.sampled_from([1, 5, 100, 5000, 30_000]),
    spread=st.sampled_from([0.1, 3.0, 20.0]),
    min_p=st.sampled_from([0.0, 0.0, 1e-4, 0.1]),
    typical_p=st.sampled_from([1.0, 1.0, 0.2, 0.9]),
    temperature=st.sampled_from([0.0, 0.1, 0.7, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 2, 50, 2000, 10_000]),
    top_p=st.sampled_from([0.0, 0.1, 0.9, 0.999, 0.9999999, 1.0]),
    seed=st.integers(0, 2**64 - 1),
)
@example(  # near the border between two tokens, where float32 takes the other one
    vocabulary=30_000,
    spread=0.1,
    min_p=0.0,
    typical_p=1.0,
    temperature=0.7,
    top_k=0,
    top_p=1.0,
    seed=800210810,
)
@example(  # nearer to 1 than float32 is sure of
    vocabulary=5000, spread=3.0, min_p=0.0, typical_p=1.0, temperature=1.0, top_k=0, top_p=0.9999999, seed=3
)
@example(  # where the entropy, a sum over all, in float32 keeps other tokens
    vocabulary=30_000, spread=0.1, min_p=0.0, typical_p=0.9, temperature=0.7, top_k=0, top_p=1.0, seed=13
)
def test_every_draw_is_the_protocols(
    vocabulary: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical_p: float,
    seed: int,
) -> None:
    logits = np.random.default_rng(seed % 1000).normal(0, spread, vocabulary).astype(np.float32)
    parameters = SamplingParameters(temperature, top_k, top_p, seed, min_p=min_p, typical_p=typical_p)
    sampler = Sampler(parameters)
    drawn = [sample(HostLogits(logits[np.newaxis]), [0], [sampler])[0] for _ in range(20)]
    assert drawn == by_the_book(logits, parameters, 20)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=50), st.integers(0, 60))
def test_the_lower_id_is_first_among_equals(values: list[int], count: int) -> None:
    scaled = np.array(values, np.float32)
    everything = np.argsort(-scaled, kind="stable")
    assert likeliest(scaled, count).tolist() == everything[:count].tolist()


@given(st.integers(0, 1000), st.sampled_from([1023, 1024, 1025, 3000]), st.integers(1, 700))
def test_the_likeliest_of_many_are_those_of_a_sort(seed: int, size: int, count: int) -> None:
    random = np.random.default_rng(seed)
    scaled = random.integers(0, random.choice([2, 50, 10_000]), size).astype(np.float32)
    scaled[random.random(size) < random.choice([0.0, 0.9])] = -np.inf
    assert likeliest(scaled, count).tolist() == np.argsort(-scaled, kind="stable")[:count].tolist()


@pytest.mark.filterwarnings("error")
def test_what_must_not_come_is_never_drawn() -> None:
    logits = np.array([-np.inf, 1, -3e38, -np.inf, 2], np.float32)
    for kept in ({}, {"top_k": 4}, {"min_p": 0.001}, {"typical_p": 0.99}, {"top_p": 0.999}):
        sampler = Sampler(SamplingParameters(temperature=0.5, **kept))
        assert {sampler.draw(logits) for _ in range(200)} <= {1, 4}


@pytest.mark.filterwarnings("error")
def test_what_must_not_come_is_never_drawn_among_many_either() -> None:
    logits = np.zeros(20_000, np.float32)
    logits[::2], logits[1::4] = -np.inf, -3e38
    for kept in ({}, {"min_p": 0.001}, {"typical_p": 0.99}, {"top_p": 0.999, "typical_p": 0.9}):
        sampler = Sampler(SamplingParameters(temperature=0.5, **kept))
        assert {sampler.draw(logits) % 4 for _ in range(50)} == {3}


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = np.array([[0, 9, 1], [0, 1, 9], [9, 9, 0]], np.float32)
    greedy = SamplingParameters(0.0, 0, 1.0, 0)
    samplers = [Sampler(greedy), Sampler(SamplingParameters(1.0, top_k=1)), Sampler(greedy)]
    assert sample(HostLogits(logits), range(3), samplers) == [1, 2, 0]


def test_the_frequencies_are_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParameters(1.0, 0, 1.0, 1))
    counts = np.bincount([sampler.draw(logits) for _ in range(20_000)], minlength=3)
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.2], atol=0.015)


@pytest.mark.filterwarnings("error")
def test_a_temperature_near_zero_is_greedy() -> None:
    logits = np.array([1, 30, 2], np.float32)
    assert Sampler(SamplingParameters(1e-40, 0, 1.0, 0)).draw(logits) == 1
