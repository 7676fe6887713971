"""The packages agree on docs/, and never import each other, but for the gateway and the commands that use the client."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "gptport": ROOT / "exporter" / "gptport",
    "gptport_backend": ROOT / "backend" / "gptport_backend",
    "gptport_client": ROOT / "client" / "gptport_client",
    "gptport_gateway": ROOT / "gateway" / "gptport_gateway",
}
# These run the whole way, a client included.
COMMANDS = PACKAGES["gptport"] / "client_commands"
USE_THE_CLIENT = {PACKAGES["gptport"] / "demo.py", *COMMANDS.glob("*.py")}


def imported(tree):
    """(package, whether it is imported in the module itself) of each absolute import that is more than a type."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module).split(".")[0], id(node) in top


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_does_not_import_the_others(package):
    others = PACKAGES.keys() - {package}
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert len(files) > 5
    for path in files:
        for name, _ in imported(ast.parse(path.read_text())):
            allowed = name == "gptport_client" and (path in USE_THE_CLIENT or package == "gptport_gateway")
            allowed |= name == "gptport_gateway" and path == COMMANDS / "gateway.py"
            assert name not in others or allowed, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted(COMMANDS.glob("*.py")), ids=lambda path: path.stem)
def test_the_command_imports_the_client_only_where_it_is_used(path):
    assert ("gptport_client", True) not in imported(ast.parse(path.read_text()))


@pytest.mark.parametrize("module", ["gptport.cli", "gptport_client", "gptport_backend"])
def test_what_a_client_or_a_server_needs_comes_without_torch(module):
    heavy = ("torch", "transformers", "onnx", "onnx_ir")
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
