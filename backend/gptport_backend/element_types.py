"""Element types of keys and values: numpy's, and bfloat16, which numpy has not, and of which the bytes are enough here."""

from __future__ import annotations

from typing import Any

import numpy as np

NAMES = ("float32", "float16", "bfloat16")
_ONNX_BFLOAT16 = 16  # TensorProto.BFLOAT16


def stored(name: str) -> np.dtype[Any]:
    """A numpy dtype of the same size, to hold them."""
    return np.dtype("uint16" if name == "bfloat16" else name)


def bound(name: str) -> Any:
    """What onnxruntime takes as element type: numpy's, or ONNX's number of one that numpy has not."""
    return _ONNX_BFLOAT16 if name == "bfloat16" else np.dtype(name).type
