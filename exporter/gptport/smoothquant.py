"""SmoothQuant: products by rows, and how much of the range of their inputs the matrices take over.

In place of x · Wᵀ stands (x / s) · (s · W)ᵀ, with s_j = max|x_j|^α / max|W_j|^(1 − α) for each feature j. A feature that is large
in every row, as some are in transformers, would leave few of a row's integers to the others.

Source: Xiao et al., SmoothQuant, 2022, arXiv:2211.10438, equation 4. There α is one for all products; here it is that of
`_ALPHAS` by which a product loses least on a text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .row_scales import rounded
from .weight_values import as_stored
from .weights import Weight, of, shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from .calibration import Inputs
    from .weight_values import Source

MAX_ERROR = 0.04
"""What a product may lose: ‖difference‖ / ‖output‖ of an input, on average; one that loses more is left in blocks."""
_ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_OUTPUTS = 4096  # of a product, that are compared
_MOST_FEATURES = 66_000  # products of 255 by 127, whose sum is an int32
_SMALLEST = 0.01  # of the mean of the largest: what is hardly there on this text may be on another


class SmoothQuant:
    """Chooses the products that are computed by rows."""

    def __init__(
        self, source: Source, aliases: Mapping[str, Sequence[str]], inputs: Mapping[str, Inputs]
    ) -> None:
        self._source = source
        self._aliases = aliases
        self._inputs = inputs

    def __call__(self, value: ir.Value) -> tuple[float, ...]:
        """What the input features of a matrix [N, K] are multiplied by; () for one that is left in blocks.

        Raises:
            CheckpointError: the checkpoint lacks a parameter of it, or has it in another shape.
        """
        weight, dims = of(value), shape(value)
        inputs = self._inputs_of(weight)
        if inputs is None or len(dims) != 2 or dims[1] > _MOST_FEATURES:
            return ()
        stored = as_stored(weight, self._source, self._aliases, dims)
        matrix = stored.read(self._source.tensor, self._source.tensor(stored.names[0]).dtype)
        error, smoothing = min(_candidates(matrix, inputs), key=lambda each: each[0])
        return tuple(smoothing.tolist()) if error <= MAX_ERROR else ()

    def _inputs_of(self, weight: Weight) -> Inputs | None:
        """None where the model multiplies in its own way, or the matrix is made otherwise than by joining some."""
        if weight != Weight(weight.names, weight.axis, weight.order, transposed=weight.transposed):
            return None
        names = (weight.names[0], *self._aliases.get(weight.names[0], ()))
        return next((self._inputs[name] for name in names if name in self._inputs), None)


def _candidates(matrix: torch.Tensor, inputs: Inputs) -> list[tuple[float, torch.Tensor]]:
    """What a matrix [N, K] loses, and by which smoothing."""
    of_matrix = torch.stack([piece.abs().amax(0) for piece in matrix.split(_OUTPUTS)]).amax(0).float()
    large = [_bounded(each) for each in (inputs.largest, of_matrix)]
    some = matrix[:: -(-len(matrix) // _OUTPUTS)].float()
    expected = inputs.some @ some.T
    found = []
    for alpha in _ALPHAS:
        smoothing = large[0] ** alpha / large[1] ** (1 - alpha)
        got = rounded(inputs.some / smoothing) @ rounded(some * smoothing).T
        found.append((_lost(got, expected), smoothing))
    return found


def _bounded(largest: torch.Tensor) -> torch.Tensor:
    return largest.clamp(min=max(_SMALLEST * float(largest.mean()), torch.finfo(torch.float32).tiny))


def _lost(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The mean of ‖difference‖ / ‖expected‖ of each row; of rows of zeros, which have nothing to lose, 0."""
    tiny = torch.finfo(torch.float32).tiny
    return float(((got - expected).norm(dim=1) / expected.norm(dim=1).clamp(min=tiny)).mean())
