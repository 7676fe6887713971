"""What config.pbtxt asks for, as Triton hands it over: each instance group with its kind, count and devices."""

from __future__ import annotations

from typing import Any

import pytest

from gptport_backend.model_config import instances


def group(kind: str, count: int, *gpus: int) -> dict[str, Any]:
    return {"kind": f"KIND_{kind}", "count": count, "gpus": list(gpus)}


@pytest.mark.parametrize(
    ("groups", "on_cpu", "on_gpus"),
    [
        ([group("CPU", 1)], 1, []),
        ([group("CPU", 3), group("CPU", 1)], 4, []),
        ([group("GPU", 2, 0, 1)], 0, [2, 2]),
        ([group("GPU", 1, 0, 1), group("GPU", 2, 1), group("CPU", 1)], 1, [1, 3]),
    ],
)
def test_the_instances_on_a_device_are_counted(groups, on_cpu, on_gpus) -> None:
    config = {"instance_group": groups}
    assert instances(config, "cpu", 0) == on_cpu
    assert [instances(config, "cuda", gpu) for gpu in range(len(on_gpus))] == on_gpus
