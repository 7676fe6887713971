"""docs/client.md is true: each example runs, each command line is one, and a user's type checker finds the types."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gptport.arguments import parser
from gptport_client import _errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()


def blocks(language):
    """The page's code blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", blocks("python"), ids=itertools.count())
def test_an_example_runs(request, toy, example, capsys, tmp_path):
    toy.max_length = 512
    toy.models.add("toy_kv")
    if "localhost:8080" in example:
        pytest.importorskip("openai")
        example = example.replace("http://localhost:8080", request.getfixturevalue("serve")())
    if '"packaged"' in example:
        toy.grows = ("input_ids", "attention_mask", "position_ids")
        (tmp_path / "tokenizer.json").write_bytes(toy.tokenizer_file)
        example = example.replace("model_repository/packaged_step/1", str(tmp_path))
        example = example.replace('"packaged"', '"toy"')
    example = example.replace("localhost:8001", toy.url).replace('"smollm2"', '"toy"')
    exec(compile(example, "docs/client.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_a_command_line_is_one(line):
    command, *arguments = shlex.split(line)
    assert command == "gptport"
    parser().parse_args(arguments)


def test_every_error_is_in_the_table():
    drawn = set(re.findall(r"[├└]── (\w+)", _errors.__doc__))
    assert drawn <= set(re.findall(r"`(\w+)`", PAGE))


SCRIPT = """
from gptport_client import Client, Result, SamplingParams, from_transformers

with Client("localhost:8001", model="smollm2") as client:
    result: Result = client.generate("Hello", SamplingParams(top_k=5), max_tokens=4, temperature=0.5)
    reveal_type(result.finish_reason)
    reveal_type([chunk.text for chunk in client.stream("Hello")])
    client.generate("Hello", max_token=4)
    client.generate("Hello", temperature="hot")
"""


def test_a_users_type_checker_finds_the_types(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "script.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "Literal['stop'] | Literal['length']" in said
    assert "list[str]" in said
    errors = re.findall(r"script.py:(\d+): error: (.*)", said)
    assert [int(line) for line, _ in errors] == [8, 9], said
