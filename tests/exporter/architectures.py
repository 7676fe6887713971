"""A small random model of each architecture, and the table of what became of it: docs/architectures.md.

`make architectures` writes the table; test_architectures.py holds the exporter to it. Each architecture has a process of
its own, with limits of time and memory. Rows are kept in .cache, by what the exporter is: an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import onnx
import onnxruntime
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gptport import console, samples, verify
from gptport.checkpoint import open_checkpoint
from gptport.errors import GptportError
from gptport.export import export
from gptport.precision import by_name
from small_models import write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

NAMES = """
    gpt2 gpt_neo gptj gpt_neox codegen opt bloom falcon mpt gpt_bigcode starcoder2 llama mistral mixtral qwen2 qwen3 gemma gemma2
    gemma3_text phi phi3 stablelm olmo olmo2 granite cohere smollm3 gpt_oss nemotron persimmon xglm biogpt
""".split()  # noqa: SIM905 - thirty quoted names would be harder to read
"""Those that every test run tries; the table has all that transformers knows, these first."""
LENGTH = 64
TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"
_ROOT = TABLE.parents[1]
_SECONDS, _BYTES = 240, 6 << 30  # of one architecture


class _Silent:
    @contextlib.contextmanager
    def step(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        yield lambda _: None


def all_names() -> list[str]:
    """Every type that transformers has a causal language model for, those of `NAMES` first."""
    return [*NAMES, *sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - set(NAMES))]


def left_to_onnxruntime(graph: Path) -> list[str]:
    """The operators of which onnxruntime's own optimizer would have more or fewer."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(graph.with_name("optimized.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph, options)
    before, after = (
        Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
        for path in (graph, options.optimized_model_filepath)
    )
    return sorted(op for op in before | after if before[op] != after[op])


def row(name: str, folder: Path, tokenizer: Path) -> str:
    """What becomes of an architecture, as a row of the table; what the exporter raises unawares is raised."""
    try:
        write_model(name, folder / name, tokenizer)
    except Exception as error:  # a configuration that is not meant to be made small
        return _row(name, "no model", f"no small model could be made: {type(error).__name__}: {error}")
    source = open_checkpoint(str(folder / name))
    try:
        with patch.object(verify, "_DECODE_STEPS", 16):
            result = export(
                source, folder / "repository", name.replace("_", "-"), by_name("fp32"), LENGTH, _Silent()
            )
    except GptportError as error:
        return _row(name, "refused", str(error))
    fused = ", ".join(
        f"{count} {rewrite}"
        for rewrite, count in result.lowering.changes.items()
        if count and rewrite not in ("lower", "cancel_views")
    )
    parity = f"{result.parity.max_abs_logit_difference:.0e} of {result.parity.max_abs_logit:.0f}"
    path = next(iter(result.folders.values())) / result.manifest.graph
    left = left_to_onnxruntime(path)
    nodes = f"{len(onnx.load(path, load_external_data=False).graph.node)} nodes"
    nodes += f" (onnxruntime still rewrites {', '.join(left)})" if left else ""
    return _row(name, "exact", f"{parity}; greedy {result.parity.greedy_agreement:.0%}; {nodes}; {fused}")


def _row(name: str, status: str, details: str) -> str:
    text = " ".join(details.split()).replace("|", "/")
    return f"| {name} | {status} | {text if len(text) <= 200 else text[:200] + '…'} |"


def _send_row(pipe: Connection, name: str, tokenizer: Path) -> None:
    """In a process of its own: the row, or what went wrong in the exporter."""
    resource.setrlimit(resource.RLIMIT_DATA, (_BYTES, _BYTES))
    console.quiet_transformers()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            pipe.send(row(name, Path(folder), tokenizer))
        except Exception as error:
            pipe.send(_row(name, "failed", f"{type(error).__name__}: {error}"))


def _row_apart(name: str, tokenizer: Path) -> str:
    """A row, by a process that may take too long or crash."""
    processes = multiprocessing.get_context("forkserver")
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=_send_row, args=(sender, name, tokenizer))
    process.start()
    sender.close()
    try:
        if receiver.poll(_SECONDS):
            return str(receiver.recv())
        return _row(name, "failed", f"no answer within {_SECONDS} seconds")
    except EOFError:
        process.join()
        return _row(name, "failed", f"its process ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _state() -> str:
    """A hash of what a row depends on."""
    sources = [*sorted((_ROOT / "exporter").rglob("*.py")), *sorted(Path(__file__).parent.glob("*model*.py"))]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in [Path(__file__), *sources]))
    return found.hexdigest()[:16]


def rows(names: list[str], kept: Path, tokenizer: Path) -> list[str]:
    """The rows of these architectures, from `kept` where they are there."""
    kept.mkdir(parents=True, exist_ok=True)

    def of(name: str) -> str:
        file = kept / name
        if not file.exists():
            found = _row_apart(name, tokenizer)
            file.write_text(found)
            sys.stdout.write(found + "\n")
            sys.stdout.flush()
        return file.read_text()

    multiprocessing.get_context("forkserver").set_forkserver_preload([Path(__file__).stem])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(of, names))


def page(found: list[str]) -> str:
    """The page with the table."""
    counts = Counter(line.split(" | ")[1] for line in found)
    return f"""# Architectures

`make architectures` writes this table: all {len(found)} types that transformers has a causal language model for.
For each a small random model (4 layers, 4 heads) is exported in fp32 and compared with torch: a prefill of several
rows and one in two chunks, a ragged batch of prefills, and 16 decode steps of that batch in place.
{counts["exact"]} are exact. {counts["refused"]} are refused with the reason, and nothing is written for them.
Of {counts["no model"]} no small model could be made. {counts["failed"] or "None"} failed in another way.

| type | export | largest logit difference, greedy agreement, nodes in all, what was fused; or the reason |
|---|---|---|
""" + "".join(f"{line}\n" for line in found)


def main() -> int:
    """Write the table; with names, show their rows alone."""
    names = sys.argv[1:]
    cache = _ROOT / ".cache"
    tokenizer = samples.sample("gpt2-tiny", cache / "tokenizer", _Silent())
    found = rows(names or all_names(), cache / "architectures" / _state(), tokenizer)
    if names:
        sys.stdout.write("\n".join(found) + "\n")
    else:
        TABLE.write_text(page(found))
    return any(" | failed | " in line for line in found)


if __name__ == "__main__":
    sys.exit(main())
