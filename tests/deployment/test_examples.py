"""docs/deployment.md: every command in it is run, or as much of it as there is here."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptport import cli
from gptport.arguments import parser
from gptport.server import running

COMPOSE = Path(sys.executable).parent / "docker-compose"


@pytest.fixture(scope="module")
def page(root) -> str:
    return (root / "docs/deployment.md").read_text()


@pytest.fixture(scope="module")
def lines(page):
    """The commands: variables, words."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    return [split(line) for block in blocks for line in block.splitlines()]


def split(line: str) -> tuple[dict[str, str], list[str]]:
    words = shlex.split(line.replace("$(openssl rand -hex 32)", "key"))
    count = next(index for index, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def of(lines, *begin: str):
    return [(variables, words) for variables, words in lines if words[: len(begin)] == list(begin)]


def test_every_command_is_of_a_kind_that_is_tried(lines):
    assert {words[0] for _, words in lines} == {"docker", "kubectl", "curl"}


@pytest.mark.skipif(not COMPOSE.exists(), reason="there is no docker-compose; make setup installs it")
def test_compose_understands_its_options(lines, root):
    tried = of(lines, "docker", "compose")
    assert len(tried) == 6
    for variables, words in tried:
        verb = next(index for index, word in enumerate(words) if word in ("up", "run"))
        command = [COMPOSE, *words[2:verb], "config", "--quiet"]
        ran = subprocess.run(
            command, cwd=root, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, ran.stderr) == (0, ""), words


def test_an_export_of_ones_own_is_what_the_command_takes(lines):
    ((_, words),) = [found for found in of(lines, "docker", "compose") if "run" in found[1]]
    assert words[words.index("--entrypoint") + 1] == "gptport"
    options = parser().parse_args(words[words.index("export") + 1 :])
    assert (str(options.checkpoint), str(options.repository), options.name) == (
        "/checkpoint",
        "/models",
        "mine",
    )


def test_the_images_that_are_built_are_those_of_the_dockerfile(lines, root):
    stages = set(re.findall(r" AS (\S+)", (root / "docker/Dockerfile").read_text()))
    tried = of(lines, "docker", "build")
    assert len(tried) == 2
    for _, words in tried:
        assert (root / words[words.index("-f") + 1]).samefile(root / "docker/Dockerfile")
        assert words[words.index("--target") + 1] in stages
        assert (root / words[-1]).samefile(root)


def test_kubectl_builds_what_it_would_apply(lines, root):
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl, which has kustomize in it")
    tried = of(lines, "kubectl", "apply", "-k")
    assert len(tried) == 3
    for _, words in tried:
        subprocess.run([kubectl, "kustomize", *words[3:]], cwd=root, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.e2e
def test_curl_gets_what_it_asks_for(lines, filled, needs):
    curl = needs("curl")
    with running(filled) as server:
        here = {"localhost:8000": server.address.http_port, "localhost:8002": server.address.metrics_port}
        for _, words in of(lines, "curl"):
            line = "\0".join(words[1:]).replace("/models/smollm2/", "/models/gpt2-tiny/")
            for there, port in here.items():
                line = line.replace(there, f"127.0.0.1:{port}")
            ran = subprocess.run(
                [curl, "-sS", *line.split("\0")], capture_output=True, text=True, check=False
            )
            assert ran.returncode == 0, ran.stderr


def test_every_variable_of_the_compose_files_is_told(page, root):
    files = [root / "docker/compose.yaml", root / "docker/compose.gpu.yaml"]
    used = {name for file in files for name in re.findall(r"\$\{(\w+)", file.read_text())}
    used |= {"GPTPORT_API_KEYS"}
    table = page.partition("| variable |")[2].partition("\n\n")[0]
    assert used == set(re.findall(r"`([A-Z]+_[A-Z_]+)`", table))


def test_the_options_in_the_text_exist(page, capsys):
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    assert "--drain" in page
    assert "--drain" in capsys.readouterr().out
