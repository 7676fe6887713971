"""The inputs and outputs of a text model, in one table: Triton's configuration, the checks and docs/generation.md follow it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Parameter:
    """An input tensor of the text model: one value, or with `many` a list of them.

    `allowed` describes what `accepts` takes; it is part of the error message. Without a `default`, what is left out is None.
    """

    name: str
    dtype: str
    default: Any
    allowed: str
    meaning: str
    accepts: Callable[[Any], bool] = lambda _: True
    many: bool = False

    @property
    def dims(self) -> list[int]:
        """The shape, as Triton's configuration has it."""
        return [-1] if self.many else [1]


@dataclass(frozen=True)
class Output:
    """An output tensor of the text model."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    meaning: str


def _at_least(least: float) -> Callable[[Any], bool]:
    return lambda value: math.isfinite(value) and value >= least


def _from_to(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: low <= value <= high


PARAMETERS = (
    Parameter("text_input", "BYTES", None, "a text that is not empty", "the prompt, as is", bool),
    Parameter(
        "input_ids",
        "INT32",
        None,
        "a list of token ids that is not empty, each 0 or more",
        "the prompt as token ids, instead of `text_input`",
        lambda ids: len(ids) > 0 and min(ids) >= 0,
        many=True,
    ),
    Parameter(
        "max_tokens",
        "INT32",
        256,
        "1 or more",
        "most new tokens; generation also ends where the sequence reaches the model's length",
        _at_least(1),
    ),
    Parameter(
        "temperature", "FP32", 0.0, "a finite number, 0 (greedy) or more", "more is more random", _at_least(0)
    ),
    Parameter("top_k", "INT32", 0, "0 (all) or more", "keep the k likeliest tokens", _at_least(0)),
    Parameter(
        "top_p",
        "FP32",
        1.0,
        "from 0 to 1",
        "keep the smallest set of likeliest tokens whose probability reaches p; never fewer than one",
        _from_to(0, 1),
    ),
    Parameter("seed", "UINT64", None, "0 or more", "same seed, same text; random if left out"),
    Parameter(
        "stop_words",
        "BYTES",
        (),
        "a list of texts, none of them empty",
        "end before the first of these texts, the one that ends first; it is not part of the answer",
        all,
        many=True,
    ),
    Parameter("stream", "BOOL", False, "true or false", "a response for each piece of text, not one for all"),
    Parameter(
        "exclude_input_in_output", "BOOL", True, "true or false", "false: the text begins with the prompt"
    ),
)

OUTPUTS = (
    Output(
        "text_output", "BYTES", (1,), "the text, or with `stream` what is new of it; never half a character"
    ),
    Output(
        "output_ids",
        "INT32",
        (-1,),
        "the new token ids of this response (an end-of-text token is included, ids behind a stop string's first token too)",
    ),
    Output(
        "finish_reason",
        "BYTES",
        (1,),
        "empty until the last response, then `stop` (end-of-text token or stop string), `length` or `cancelled`",
    ),
    Output("num_input_tokens", "UINT32", (1,), "tokens of the prompt"),
    Output("num_output_tokens", "UINT32", (1,), "new tokens so far"),
)


def complete(config: Any) -> None:
    """Add all inputs and outputs to Triton's configuration of a model, an object of its `auto_complete_config`."""
    for parameter in PARAMETERS:
        config.add_input({**_tensor(parameter), "dims": parameter.dims, "optional": True})
    for output in OUTPUTS:
        config.add_output({**_tensor(output), "dims": list(output.dims)})


def _tensor(described: Parameter | Output) -> dict[str, Any]:
    dtype = "STRING" if described.dtype == "BYTES" else described.dtype
    return {"name": described.name, "data_type": f"TYPE_{dtype}"}
