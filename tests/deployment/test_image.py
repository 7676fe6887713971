"""The Dockerfile: what it copies, installs and runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from filling import fill
from gptport.arguments import parser
from gptport.server import models_of

HADOLINT = Path(sys.executable).parent / "hadolint"


@pytest.fixture(scope="module")
def dockerfile(root) -> str:
    """Its instructions, one a line."""
    text = (root / "docker/Dockerfile").read_text()
    return re.sub(r"\\\n\s*", "", re.sub(r"(?m)^\s*#.*\n", "", text))


def arguments(dockerfile: str, instruction: str) -> list[str]:
    """What stands behind the last of its kind."""
    return re.findall(rf"(?m)^{instruction} (.*)$", dockerfile)[-1]


@pytest.mark.skipif(not HADOLINT.exists(), reason="there is no hadolint; make setup installs it")
def test_hadolint_has_nothing_to_say(root):
    ran = subprocess.run([HADOLINT, root / "docker/Dockerfile"], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_every_file_that_is_copied_exists_and_reaches_the_build(root, dockerfile):
    let_in = set(re.findall(r"(?m)^!(.*)$", (root / ".dockerignore").read_text()))
    copied = [
        part for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", dockerfile) for part in line.split()[:-1]
    ]
    assert len(copied) == 9
    assert [path for path in copied if not (root / path).exists()] == []
    assert set(copied) == let_in


def test_every_package_of_the_project_is_copied(root, dockerfile):
    project = tomllib.loads((root / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(package).parts[0] for package in packages} <= set(re.findall(r"COPY (\w+) ", dockerfile))


def test_nothing_is_compiled_and_everything_is_pinned(dockerfile):
    installs = re.findall(r"pip --python \S+ install (.*?)(?: &&|$)", dockerfile, re.MULTILINE)
    assert len(installs) == 3
    assert [line for line in installs if "--only-binary :all: -c constraints.txt" not in line] == []
    assert "apt-get" not in dockerfile


def test_the_images_do_not_run_as_root(dockerfile):
    for stage in ("export", "serve"):
        last = dockerfile.partition(f" AS {stage}\n")[2].partition("\nFROM")[0]
        assert "USER 1000:1000" in last
        assert "RUN" not in last  # what builds stays in its own stage


def test_the_container_runs_the_command_that_the_tests_run(dockerfile):
    program, *words = json.loads(arguments(dockerfile, "CMD"))
    assert program == "gptport"
    options = parser().parse_args(words)
    assert (options.command, str(options.repository), options.host) == ("serve", "/models", "0.0.0.0")
    assert options.restrict_admin
    assert options.drain == 30
    ports = [str(port) for port in (options.http_port, options.grpc_port, options.metrics_port)]
    assert arguments(dockerfile, "EXPOSE").split() == ports


@pytest.mark.e2e
def test_the_health_check_asks_whether_the_models_are_ready(dockerfile, filled):
    from gptport.server import running

    command = json.loads(dockerfile.partition("CMD ")[2].partition("\n")[0])
    command[0] = sys.executable
    with running(filled) as server:
        command[2] = command[2].replace("127.0.0.1:8000", server.address.http_url.removeprefix("http://"))
        assert subprocess.run(command, check=False).returncode == 0
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_an_empty_repository_is_filled_once(filled):
    assert models_of(filled) == ["gpt2-tiny", "gpt2-tiny_step"]
    assert "nothing to do" in fill(filled)


def test_what_was_exported_can_be_read_by_another_user(filled):
    closed = [path for path in filled.rglob("*") if path.stat().st_mode & 0o044 != 0o044]
    assert closed == []
