"""What a request changes in its logits and keeps of them is what transformers' processors do, where it has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

from gptport_backend.logits import HostLogits
from gptport_backend.processors import ALLOW_ALL, Forbidden
from gptport_backend.request import SamplingParameters
from gptport_backend.sampling import Sampler, sample

VOCABULARY = 400
PROMPT = [5, 9, 9, 17, 380]
OUTPUT = [7, 9, 7, 200, 5]
ENDS = (0, 31)
DRAWS = 4000


@pytest.fixture(params=range(3))
def logits(request: pytest.FixtureRequest) -> np.ndarray[Any, Any]:
    return np.random.default_rng(request.param).normal(0, 3, VOCABULARY).astype(np.float32)


def adjusted(logits: np.ndarray[Any, Any], forbidden: Forbidden = ALLOW_ALL, **parameters: Any) -> Any:
    """`logits` behind PROMPT and OUTPUT, as a request with these parameters changes them."""
    sampler = Sampler(SamplingParameters(**parameters), PROMPT, forbidden)
    for token in OUTPUT:
        sampler.append(token)
    changed = logits.copy()
    sampler.adjust(changed)
    return changed


def by_transformers(logits: np.ndarray[Any, Any], *processors: Any) -> Any:
    ids, scores = torch.tensor([PROMPT + OUTPUT]), torch.tensor(logits)[None].clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].numpy()


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty(logits, penalty) -> None:
    expected = by_transformers(logits, theirs.RepetitionPenaltyLogitsProcessor(penalty))
    np.testing.assert_allclose(adjusted(logits, repetition_penalty=penalty), expected, rtol=1e-6)


def test_logit_bias(logits) -> None:
    bias = ((3, 5.0), (390, -100.0))
    expected = by_transformers(
        logits, theirs.SequenceBiasLogitsProcessor([[[token], value] for token, value in bias])
    )
    np.testing.assert_allclose(adjusted(logits, logit_bias=bias), expected, rtol=1e-6)


def test_bad_words(logits) -> None:
    words = ((11,), (200, 5, 77), (5, 78), (6, 79), (9, 9, 17, 380, 7, 9, 7, 200, 5, 80))
    expected = by_transformers(logits, theirs.NoBadWordsLogitsProcessor([list(word) for word in words]))
    assert np.isneginf(expected).sum() == 4
    np.testing.assert_array_equal(adjusted(logits, Forbidden(words=words)), expected)


@pytest.mark.parametrize("least", [0, len(OUTPUT), len(OUTPUT) + 1])
def test_min_tokens(logits, least) -> None:
    processor = theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), least, list(ENDS), device="cpu")
    expected = by_transformers(logits, processor)
    np.testing.assert_array_equal(adjusted(logits, Forbidden(ends=ENDS), min_tokens=least), expected)


def test_presence_and_frequency_penalty_count_the_answer_only(logits) -> None:
    changed = adjusted(logits, presence_penalty=0.5, frequency_penalty=0.25)
    taken = dict.fromkeys(range(VOCABULARY), 0.0) | {7: 1.0, 9: 0.75, 200: 0.75, 5: 0.75}
    np.testing.assert_allclose(logits - changed, list(taken.values()), atol=1e-6)


def test_without_parameters_logits_stay_as_they_are(logits) -> None:
    np.testing.assert_array_equal(adjusted(logits), logits)


FILTERS = {
    "top_k": theirs.TopKLogitsWarper,
    "top_p": theirs.TopPLogitsWarper,
    "min_p": theirs.MinPLogitsWarper,
    "typical_p": theirs.TypicalLogitsWarper,
}


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 20},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"typical_p": 0.3},
        {"typical_p": 0.9},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.8},
        {"top_p": 0.95, "min_p": 0.1},
    ],
    ids=str,
)
def test_the_tokens_drawn_have_the_probabilities_of_transformers(logits, parameters) -> None:
    """Every u of a fine grid once: how often a token comes is its probability, but for the grid's step."""
    filters = [FILTERS[name](value) for name, value in parameters.items()]
    scores = by_transformers(logits, theirs.TemperatureLogitsWarper(1.5), *filters)
    expected = torch.tensor(scores, dtype=torch.float64).softmax(-1).numpy()
    sampler = Sampler(SamplingParameters(temperature=1.5, **parameters))
    sampler._random = Grid()
    counts = np.bincount([sampler.draw(logits) for _ in range(DRAWS)], minlength=VOCABULARY)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=1.01 / DRAWS)
    assert not counts[expected == 0].any()


def test_all_of_it_together_is_in_transformers_order(logits) -> None:
    words = ((11,), (5, 78), (5, 81))
    changes = [
        theirs.SequenceBiasLogitsProcessor([[[7], 6.0], [[81], 9.0], [[3], 4.0]]),
        theirs.RepetitionPenaltyLogitsProcessor(1.5),
        theirs.NoBadWordsLogitsProcessor([list(word) for word in words]),
        theirs.MinNewTokensLengthLogitsProcessor(len(PROMPT), len(OUTPUT) + 1, list(ENDS), device="cpu"),
    ]
    parameters = {"top_k": 60, "top_p": 0.97, "min_p": 0.01, "typical_p": 0.95}
    filters = [FILTERS[name](value) for name, value in parameters.items()]
    scores = by_transformers(logits, *changes, theirs.TemperatureLogitsWarper(2.0), *filters)
    expected = torch.tensor(scores, dtype=torch.float64).softmax(-1).numpy()
    assert 3 < (expected > 0).sum() < 60
    asked = SamplingParameters(
        temperature=2.0,
        repetition_penalty=1.5,
        logit_bias=((7, 6.0), (81, 9.0), (3, 4.0)),
        min_tokens=len(OUTPUT) + 1,
        **parameters,
    )
    sampler = Sampler(asked, PROMPT, Forbidden(ends=ENDS, words=words))
    for token in OUTPUT:
        sampler.append(token)
    changed = logits.copy()
    sampler.adjust(changed)
    sampler._random = Grid()
    counts = np.bincount([sampler.draw(changed) for _ in range(DRAWS)], minlength=VOCABULARY)
    np.testing.assert_allclose(counts / DRAWS, expected, atol=1.01 / DRAWS)


def test_presence_and_frequency_penalty_are_those_of_openais_formula(logits) -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c[j] is how often j was sampled before."""
    counts = np.bincount(OUTPUT, minlength=VOCABULARY)
    for presence, frequency in ((0.5, 0.0), (0.0, 1.25), (-2.0, 0.75), (1.5, -2.0)):
        expected = logits - counts * frequency - (counts > 0) * presence
        changed = adjusted(logits, presence_penalty=presence, frequency_penalty=frequency)
        np.testing.assert_allclose(changed, expected, atol=1e-6)


class Grid:
    """Numbers from 0 to 1 at equal distances."""

    def __init__(self) -> None:
        self._numbers = iter((np.arange(DRAWS) + 0.5) / DRAWS)

    def random(self) -> float:
        return float(next(self._numbers))


def test_logprobs_are_those_of_the_model_whatever_changes_them(logits) -> None:
    expected = torch.tensor(logits).double().log_softmax(-1)
    top = expected.topk(3)
    sampler = Sampler(SamplingParameters(logit_bias=((8, 100.0),), logprobs=3))
    assert sample(HostLogits(logits[None].copy()), [0], [sampler]) == [8]
    (found,) = sampler.logprobs
    assert found.token == pytest.approx(float(expected[8]))
    assert found.top_ids == tuple(top.indices.tolist())
    assert found.top == pytest.approx(top.values.tolist())
