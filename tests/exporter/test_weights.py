"""What initializers are made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptport import weight_values, weights
from gptport.errors import CheckpointError
from graphs import (
    FLOAT,
    Tensors,
    model_of,
)


def test_a_weight_of_another_shape_than_configured_is_refused():
    model = model_of([], [], [])
    weights.parameter(model.graph, "w", FLOAT, (3, 2))
    with pytest.raises(CheckpointError, match=r"w has shape \[2, 2\] in the checkpoint, and \[3, 2\]"):
        weight_values.attach(model.graph, Tensors(w=torch.zeros(2, 2)), {})


def test_a_packed_transposed_weight_is_read_from_its_parts():
    model = model_of([], [], [])
    parts = [weights.parameter(model.graph, name, FLOAT, (rows, 2)) for name, rows in (("a", 1), ("b", 2))]
    packed = weights.transpose(weights.concatenate(parts, 0, "ab"))
    stored = {"a": torch.tensor([[1.0, 2.0]]), "alias of b": torch.tensor([[3.0, 4.0], [5.0, 6.0]])}
    weight_values.attach(model.graph, Tensors(stored), {"b": ("alias of b",)})
    np.testing.assert_array_equal(packed.const_value.numpy(), [[1, 3, 5], [2, 4, 6]])
