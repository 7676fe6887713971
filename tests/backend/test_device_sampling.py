"""sampler.onnx draws as the host does, whatever a request asks for; here on the CPU, whose memory is a device like any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptport import sampling_graph
from gptport_backend.device_sampling import DeviceSampler
from gptport_backend.errors import NothingToChoose
from gptport_backend.logits import DeviceLogits, HostLogits
from gptport_backend.memory import HostMemory
from gptport_backend.processors import Forbidden
from gptport_backend.request import SamplingParameters
from gptport_backend.sampling import Sampler, sample

ROWS, VOCABULARY = 4, 300
PROMPT = (5, 9, 9, 17, 280)
FORBIDDEN = Forbidden(ends=(0, 31), words=((7,), (9, 11), (17, 280, 12)))
STEPS = 4

parameters = st.builds(
    SamplingParameters,
    temperature=st.sampled_from([0.0, 1e-38, 0.3, 1.0, 7.0]),
    top_k=st.sampled_from([0, 1, 2, 40, 1000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    typical_p=st.sampled_from([1.0, 1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 1e30]),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (9, -100.0), (31, 9.0))]),
    min_tokens=st.sampled_from([0, 3]),
    logprobs=st.sampled_from([None, None, 2]),
    seed=st.integers(0, 2**64 - 1),
)


class Device:
    """A sampler's graph, and the memory that a model would put its logits in."""

    def __init__(self, dtype: str) -> None:
        content = sampling_graph.model(dtype).SerializeToString()
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        self.dtype = dtype
        self._session = onnxruntime.InferenceSession(content, settings)
        self.sampler = DeviceSampler(self._session, HostMemory(), ROWS, VOCABULARY, dtype)

    def logits(self, values: np.ndarray[Any, Any]) -> DeviceLogits:
        self.sampler._logits.owner[: len(values), 0, 0] = values
        return DeviceLogits(self.sampler, len(values))


@pytest.fixture(scope="module", params=["float32", "float16"])
def device(request: pytest.FixtureRequest) -> Device:
    return Device(request.param)


def logits_of(seed: int, device: Device, rows: int = ROWS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 3, (rows, VOCABULARY)).astype(device.dtype)


@settings(max_examples=60)
@given(asked=st.lists(parameters, min_size=1, max_size=ROWS), seed=st.integers(0, 1000))
def test_the_tokens_are_those_of_the_host(device: Device, asked: list[SamplingParameters], seed: int) -> None:
    here, there = ([Sampler(each, PROMPT, FORBIDDEN) for each in asked] for _ in range(2))
    rows = range(len(asked))
    for step in range(STEPS):
        logits = logits_of(seed + step, device, len(asked))
        expected = sample(HostLogits(logits.astype(np.float32)), rows, here)
        drawn = sample(device.logits(logits), rows, there)
        assert list(map(str, drawn)) == list(map(str, expected))
        for one, other in zip(here, there, strict=True):
            assert one.logprobs == other.logprobs


def test_only_what_is_asked_for_is_sampled(device: Device) -> None:
    """Rows that a search has, and those that the host has to look at, are left out."""
    logits = logits_of(0, device)
    samplers = [Sampler(SamplingParameters(seed=1)), Sampler(SamplingParameters(typical_p=0.5))]
    again = [Sampler(SamplingParameters(seed=1)), Sampler(SamplingParameters(typical_p=0.5))]
    expected = sample(HostLogits(logits[[1, 3]].astype(np.float32)), range(2), again)
    assert sample(device.logits(logits), [1, 3], samplers) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_their_row_alone(
    device: Device, value: float, temperature: float
) -> None:
    logits = logits_of(0, device)
    logits[1] = value
    if np.isnan(value):
        logits[1, :-1] = 1
    samplers = [Sampler(SamplingParameters(temperature=temperature)) for _ in range(ROWS)]
    tokens = sample(device.logits(logits), range(ROWS), samplers)
    assert isinstance(tokens[1], NothingToChoose)
    assert all(isinstance(token, int) for row, token in enumerate(tokens) if row != 1)


def test_nothing_is_left_to_choose(device: Device) -> None:
    sampler = Sampler(
        SamplingParameters(), (), Forbidden(words=tuple((token,) for token in range(VOCABULARY)))
    )
    (token,) = sample(device.logits(logits_of(0, device, 1)), [0], [sampler])
    assert isinstance(token, NothingToChoose)


REQUESTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 1},
    {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "seed": 2},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "seed": 3, "n": 3},
    {"bad_words": ["a", "be"], "min_tokens": 5},
    {"logit_bias_ids": [65, 66], "logit_bias_values": [5.0, 4.0], "temperature": 1.0, "seed": 4},
    {"temperature": 1.0, "typical_p": 0.8, "seed": 5},
    {"logprobs": 3},
    {"prompt_logprobs": 2, "temperature": 0.7, "seed": 6},
    {"regex": "[a-f]{5,20}", "temperature": 1.0, "seed": 7},
    {"beam_width": 3, "n": 2},
    {"prompt_lookup": 4},
]


def test_an_engine_that_draws_on_the_device_gives_the_same_answers(serve: Any) -> None:
    """All at once, so that rows of all kinds share the steps, and their rows change places."""
    host, graph = serve(), serve(sampler="graph")
    prompts = ["hello", "the same again", "x"]
    asked = [
        {"max_tokens": 12 + place, "text_input": text, **request}
        for place, request in enumerate(REQUESTS)
        for text in prompts
    ]
    expected = [host.ask(**inputs) for inputs in asked]
    answers = [graph.ask(**inputs) for inputs in asked]
    for inputs, answer, other in zip(asked, answers, expected, strict=True):
        assert answer.wait().error == other.wait().error == "", inputs
        assert answer.token_ids == other.token_ids, inputs
        assert [piece.logprobs for piece in answer.pieces] == [piece.logprobs for piece in other.pieces]
