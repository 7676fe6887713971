"""The example of docs/export.md: onnxruntime-genai writes what the server writes, from the same files."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime_genai

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
PROMPT, LENGTH = "The capital of France is", 48


def test_the_example_prints_what_the_server_answers(client, repository, tmp_path, monkeypatch, capsys):
    onnxruntime_genai.disable_telemetry_events()
    section = PAGE.read_text(encoding="utf-8").partition("# In onnxruntime-genai")[2]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    (tmp_path / "model_repository").symlink_to(repository)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, PAGE, "exec"), {})
    server = client("smollm2")
    answer = server.generate(PROMPT, max_tokens=LENGTH - len(server.tokenize(PROMPT)))
    assert capsys.readouterr().out == f"{PROMPT}{answer.text}\n"
