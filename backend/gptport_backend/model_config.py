"""Triton's configuration of a model: what the backend adds to it, and what it asks of the backend."""

from __future__ import annotations

import sys
from typing import Any

from gptport_backend.errors import LoadError
from gptport_backend.outputs import OUTPUTS, Output
from gptport_backend.parameters import PARAMETERS, Parameter
from gptport_backend.runner import SAMPLERS


def complete(config: Any) -> None:
    """Add all inputs and outputs to Triton's configuration of a model, an object of its `auto_complete_config`."""
    for parameter in PARAMETERS:
        config.add_input({**_tensor(parameter), "dims": parameter.dims, "optional": True})
    for output in OUTPUTS:
        config.add_output({**_tensor(output), "dims": list(output.dims)})


def check_batching(config: dict[str, Any]) -> None:
    """LoadError if Triton would batch the requests itself, which ends it with a crash, or take one response for each."""
    if config.get("max_batch_size"):
        raise LoadError(
            f"max_batch_size in config.pbtxt is {config['max_batch_size']}; leave it out: the backend batches requests "
            "itself, as many at a time as the parameter of that name says"
        )
    if not config.get("model_transaction_policy", {}).get("decoupled"):
        raise LoadError("model_transaction_policy in config.pbtxt must be { decoupled: true }")


def integers(config: dict[str, Any], *names: str, least: int = 1, most: int = sys.maxsize) -> dict[str, int]:
    """Those of the parameters `names` of config.pbtxt that are there, as whole numbers from `least` to `most`."""
    values = {}
    for name in names:
        text = config.get("parameters", {}).get(name, {}).get("string_value")
        if text is None:
            continue
        if not text.isdecimal() or not least <= int(text) <= most:
            limit = f"{least} or more" if most == sys.maxsize else f"from {least} to {most}"
            raise LoadError(
                f"the parameter {name} in config.pbtxt is {text!r}; it must be a whole number, {limit}"
            )
        values[name] = int(text)
    return values


def instances(config: dict[str, Any], device: str, device_id: int) -> int:
    """How many instances of the model are on that device, by what Triton made of `instance_group`."""
    groups = [each for each in config["instance_group"] if (each["kind"] == "KIND_GPU") == (device == "cuda")]
    return sum(each["count"] for each in groups if not each["gpus"] or device_id in each["gpus"])


def sampler(config: dict[str, Any]) -> str | None:
    """The parameter `sampler` of config.pbtxt: where tokens are drawn; None if it is not there."""
    place = config.get("parameters", {}).get("sampler", {}).get("string_value")
    if place not in (None, *SAMPLERS):
        raise LoadError(
            f"the parameter sampler in config.pbtxt is {place!r}; it must be {' or '.join(SAMPLERS)}"
        )
    return None if place is None else str(place)


def _tensor(described: Parameter | Output) -> dict[str, Any]:
    dtype = "STRING" if described.dtype == "BYTES" else described.dtype
    return {"name": described.name, "data_type": f"TYPE_{dtype}"}
