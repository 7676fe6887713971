"""One table of parameters: what Triton is told and what the page says are what a request is checked against."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptport_backend.model_config import complete
from gptport_backend.outputs import OUTPUTS
from gptport_backend.parameters import PARAMETERS
from gptport_backend.reference import generation_page, metrics_page

DOCS = Path(__file__).parents[2] / "docs"


class Config:
    """What Triton hands to `auto_complete_config`."""

    def __init__(self) -> None:
        self.inputs, self.outputs = [], []
        self.add_input, self.add_output = self.inputs.append, self.outputs.append


@pytest.mark.parametrize(("name", "page"), [("generation", generation_page), ("metrics", metrics_page)])
def test_the_page_is_written_from_the_table(name, page) -> None:
    assert (DOCS / f"{name}.md").read_text() == page(), "make reference"


def test_triton_is_told_every_input_and_output() -> None:
    config = Config()
    complete(config)
    assert [each["name"] for each in config.inputs] == [parameter.name for parameter in PARAMETERS]
    assert [each["name"] for each in config.outputs] == [output.name for output in OUTPUTS]
    assert all(each["optional"] for each in config.inputs)
    assert {"name": "stop_words", "data_type": "TYPE_STRING", "dims": [-1], "optional": True} in config.inputs


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_a_default_is_allowed(parameter) -> None:
    assert parameter.default is None or parameter.accepts(parameter.default)
