"""The client's parameters are the engine's, and its own loop chooses the tokens that the engine chooses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptport_backend import request as engine_request
from gptport_backend import sampling as engine
from gptport_backend.logits import HostLogits
from gptport_backend.parameters import PARAMETERS
from gptport_backend.processors import Forbidden
from gptport_client import InvalidRequest, SamplingParams
from gptport_client._adjust import Adjuster
from gptport_client._sampling import Sampler, likeliest, log_softmax
from gptport_client._wire import PARAMETER_TENSORS

# Of a request, but not of how it is sampled: the client has other places for them.
ELSEWHERE = {
    "text_input",
    "input_ids",
    "messages",
    "chat_template_kwargs",
    "timeout",
    "n",
    "beam_width",
    "length_penalty",
    "stream",
    "exclude_input_in_output",
}
VOCABULARY, EOS = 48, 5
ROWS = {parameter.name: parameter for parameter in PARAMETERS}


def test_every_parameter_of_the_engine_is_one_of_the_client():
    tensors = {name: datatype for each in PARAMETER_TENSORS.values() for name, datatype in each}
    assert tensors == {row.name: row.dtype for row in PARAMETERS if row.name not in ELSEWHERE}


def test_what_is_left_out_has_the_same_value_on_both_sides():
    for field in dataclasses.fields(SamplingParams):
        for name, _ in PARAMETER_TENSORS[field.name]:
            assert ROWS[name].default == field.default


NUMBERS = [
    -(2.0**31),
    -2.5,
    -2,
    -1,
    -0.01,
    0,
    0.01,
    0.5,
    1,
    1.01,
    2,
    2.5,
    20,
    21,
    2.0**31,
    float("nan"),
    float("inf"),
]


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(SamplingParams) if not isinstance(f.default, tuple)]
)
def test_both_sides_refuse_the_same_numbers(field):
    ((name, datatype),) = PARAMETER_TENSORS[field]
    if datatype in ("BOOL", "BYTES"):
        return
    for number in NUMBERS:
        if datatype != "FP32" and (
            number != number or number % 1 or abs(number) >= 2**31 or (field == "seed" and number < 0)
        ):
            continue
        value = number if datatype == "FP32" else int(number)
        others = {"min_tokens": 0, "max_tokens": 256, "prompt_logprobs": 0}
        try:
            SamplingParams(**{**others, field: value})
        except InvalidRequest:
            assert not ROWS[name].accepts(value), (field, value)
        else:
            assert ROWS[name].accepts(value), (field, value)


class Words:
    """A tokenizer that knows the tokens of some words."""

    tokens = {"bad": (7,), " bad": (8, 9), "worse": (10, 11), " worse": ()}  # noqa: RUF012
    tokens |= {"beyond": (VOCABULARY,), " beyond": (8, VOCABULARY + 1)}  # of the tokenizer alone

    def encode(self, text, *, special_tokens):
        assert not special_tokens
        return self.tokens[text]


PARAMETERS_DRAWN = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**64 - 1)},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.integers(0, VOCABULARY + 2),
        "top_p": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 0.3, 1.0]),
        "typical_p": st.sampled_from([0.1, 0.5, 0.95, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "presence_penalty": st.sampled_from([-1.5, 0.0, 0.7]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 1.1]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCABULARY - 1), st.sampled_from([-100.0, -0.5, 2.0]), max_size=4
        ),
        "bad_words": st.sampled_from([(), ("bad",), ("bad", "worse"), ("beyond", "bad")]),
        "stop_token_ids": st.sampled_from([(), (3,), (3, 4)]),
        "min_tokens": st.integers(0, 4),
    },
)


@settings(max_examples=300)
@given(
    drawn=PARAMETERS_DRAWN,
    numbers=st.integers(0, 2**32),
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6),
)
def test_both_loops_choose_the_same_tokens(drawn, numbers, prompt):
    params = SamplingParams(**drawn)
    words = Words()
    adjuster, sampler = Adjuster(params, prompt, frozenset([EOS]), words), Sampler(params)
    texts = [text for word in params.bad_words for text in (word, f" {word}")]
    possible = [words.tokens[text] for text in texts if words.tokens[text]]
    possible = [
        tokens for tokens in possible if tokens[-1] < VOCABULARY
    ]  # as the engine's Vocabulary leaves them out
    forbidden = Forbidden((EOS, *params.stop_token_ids), tuple(possible))
    theirs = engine.Sampler(of_the_engine(params), prompt, forbidden)
    random = np.random.default_rng(numbers)
    for _ in range(6):
        logits = (random.normal(size=VOCABULARY) * 3).astype(np.float32)
        token = sampler.draw(adjuster.adjust(logits))
        adjuster.append(token)
        assert engine.sample(HostLogits(logits[np.newaxis].copy()), [0], [theirs]) == [token]


def of_the_engine(params):
    """The engine's parameters, rounded as the wire rounds them."""
    known = {field.name for field in dataclasses.fields(engine_request.SamplingParameters)}
    given = {name: getattr(params, name) for name in known if name != "logit_bias"}
    rounded = {
        name: float(np.float32(value)) if isinstance(value, float) else value for name, value in given.items()
    }
    return engine_request.SamplingParameters(**rounded, logit_bias=params.biases)


def test_both_loops_give_the_same_logprobs():
    logits = np.random.default_rng(0).normal(size=VOCABULARY).astype(np.float32)
    params = SamplingParams(seed=1, logprobs=3)
    theirs = engine.Sampler(of_the_engine(params), [1])
    (token,) = engine.sample(HostLogits(logits[np.newaxis].copy()), [0], [theirs])
    own = log_softmax(logits)
    assert theirs.logprobs[0].token == pytest.approx(own[token])
    assert theirs.logprobs[0].top_ids == tuple(likeliest(own, 3).tolist())
