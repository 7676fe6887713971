"""The precisions of an export: which dtype the graph computes in and how close to the checkpoint its logits have to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        name: as on the command line and in the manifest.
        dtype_name: torch's name of the dtype of weights, activations and the KV cache. Logits are float32 in every precision.
        tolerance: the largest logit difference to the checkpoint in float32, relative to the largest logit (absolute value).
    """

    name: str
    dtype_name: str
    tolerance: float

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of that name."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype_name)
        return found


PRECISIONS: Mapping[str, Precision] = {
    "fp32": Precision("fp32", "float32", 1e-4),
    "fp16": Precision("fp16", "float16", 2e-2),
}


def by_name(name: str) -> Precision:
    """The precision of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRECISIONS:
        raise UsageError(f"precision {name!r} is not one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
