"""Whatever tensors come, a request is taken or refused with a message that names a field; nothing else happens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from conftest import Answer, Served
from gptport_backend.engine import EngineOptions
from gptport_backend.errors import RequestError
from gptport_backend.parameters import PARAMETERS
from gptport_backend.request import NUMPY_TYPES, parse

NAMES = tuple(parameter.name for parameter in PARAMETERS)
TYPES = (np.int32, np.int64, np.uint64, np.float32, np.float64, np.bool_)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def bytes_tensors() -> st.SearchStrategy[Any]:
    items = st.lists(st.one_of(st.binary(max_size=12), st.text(max_size=6).map(str.encode)), max_size=4)
    return items.map(lambda values: np.array([*values, None], np.object_)[:-1])


def any_tensor() -> st.SearchStrategy[Any]:
    """Of any type, shape and value: NaN, infinities and the largest integers too."""
    return st.one_of(bytes_tensors(), st.sampled_from(TYPES).flatmap(lambda t: arrays.arrays(t, SHAPES)))


def fitting_tensors() -> st.SearchStrategy[dict[str, Any]]:
    """A few of the right types and shapes, so that values and their combinations are tried."""
    one = {
        p.name: bytes_tensors()
        if p.dtype == "BYTES"
        else arrays.arrays(NUMPY_TYPES[p.dtype], st.integers(0, 4) if p.many else 1)
        for p in PARAMETERS
    }
    names = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: one[name] for name in chosen}))


def taken_or_refused(tensors: dict[str, Any]) -> Any:
    request, message = None, ""
    try:
        request = parse(tensors)
    except RequestError as error:
        message = str(error)
    assert request or message.startswith((*tensors, *NAMES, "the request has"))
    return request


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from((*NAMES, "nonsense")), any_tensor(), max_size=5))
def test_any_tensors(tensors: dict[str, Any]) -> None:
    taken_or_refused(tensors)


@pytest.fixture(scope="module")
def served(version_dir) -> Any:
    running = Served(version_dir, EngineOptions())
    yield running
    running.engine.close(0)


@settings(max_examples=300)
@given(tensors=fitting_tensors(), prompt=st.binary(min_size=1, max_size=20))
def test_what_is_taken_is_answered(served: Served, tensors: dict[str, Any], prompt: bytes) -> None:
    tensors = {**tensors, "max_tokens": np.array([3], np.int32)}
    if "input_ids" not in tensors:
        tensors["text_input"] = np.array([prompt], np.object_)
    request, answer = taken_or_refused(tensors), Answer()
    if request is None:
        return
    try:
        served.engine.submit(request, answer)
    except RequestError:
        return
    answer.wait()
    assert answer.pieces or "there is no token to choose" in answer.error
    assert "the engine failed" not in answer.error
