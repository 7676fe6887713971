"""What `gptport export` does before it compares: trace, write, hash. It is raced against an exporter that compares nothing.

python -m benchmarks.unverified CHECKPOINT PRECISION DIR
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from gptport import allocator, locate, precision


def main(source: str, name: str, folder: Path) -> None:
    """Write the files of a version, all but the report and the manifest, into a folder."""
    location = locate.locate(source, allow_pickle=False)
    allocator.let_threads_sleep()
    gc.disable()
    from gptport import checkpoint, console, description, export, graph

    console.quiet_transformers()
    gc.enable()
    allocator.return_large_blocks()
    allocator.use_huge_pages()
    found = checkpoint.located(location)
    chosen = precision.chosen(name)
    length = export.chosen_length(found.name, found.spec.context_length, None)
    built = graph.build(found, chosen, length)
    manifest = description.described(built.model, found, "model", chosen, length)
    with console.Steps() as steps:
        export.write(built.model, manifest, found.tokenizer_files(), folder, steps, os.cpu_count() or 1)
    export.hashed(folder)
    found.sha256.result()
    sys.stdout.flush()
    os._exit(0)  # as the command does: without taking torch apart


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
