"""What the Dockerfile installs resolves for the Python of its base image, as wheels. `make deployment` asks the registry."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib

import pytest

pytestmark = [
    pytest.mark.skipif("GPTPORT_DEPLOYMENT" not in os.environ, reason="make deployment asks the registry"),
    pytest.mark.timeout(900),
]

SERVE = ("gateway", "structured")
EXPORT = ("export", "gateway")
OLDER_NAMES = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64")


def resolve(folder, requirements) -> subprocess.CompletedProcess[str]:
    """Resolve for Python 3.12 on Ubuntu 24.04, which is what the base image has."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)]
    options = ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--target", str(folder), "--quiet"]
    options += ["--python-version=3.12", "--implementation=cp"]
    options += [f"--platform={platform}" for platform in (*platforms, *OLDER_NAMES)]
    command = [sys.executable, "-m", "pip", "install", *options, "-c", "constraints.txt", *requirements]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("extras", "more"),
    [(SERVE, ["onnxruntime"]), (SERVE, ["onnxruntime-gpu"]), (EXPORT, ["onnxruntime", "pip"])],
)
def test_everything_has_a_wheel(root, tmp_path, monkeypatch, extras, more):
    monkeypatch.chdir(root)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *more]
    wanted += [package for extra in extras for package in project["optional-dependencies"][extra]]
    ran = resolve(tmp_path, wanted)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_the_server_needs_no_more_than_the_image_has(root, tmp_path):
    """In an environment made by the Dockerfile's own steps, all that `gptport serve` and the backend import is there."""
    environment = tmp_path / "gptport"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    wheels = tmp_path / "wheels"
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, root], check=True)
    (wheel,) = wheels.glob("gptport-*.whl")
    python = environment / "bin/python"
    install = [*pip, "--python", python, "install", "--only-binary", ":all:", "-c", root / "constraints.txt"]
    subprocess.run([*install, f"{wheel}[gateway,structured]", "onnxruntime"], check=True)
    modules = "gptport.cli gptport.server gptport.triton_process gptport_gateway.app gptport_client"
    backend = "gptport_backend.engine gptport_backend.runner gptport_backend.manifest tokenizers"
    subprocess.run(
        [python, "-I", "-c", f"import {', '.join([*modules.split(), *backend.split()])}"], check=True
    )
    subprocess.run([environment / "bin/gptport", "serve", "--help"], check=True, stdout=subprocess.DEVNULL)
