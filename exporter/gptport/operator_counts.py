"""How many nodes of which operator a graph has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from pathlib import Path

    from .manifest import Manifest


def counted(folder: Path, manifest: Manifest) -> str:
    """A table of them: in all, in a decoder layer on average, and around the layers."""
    nodes = onnx.load(folder / manifest.graph, load_external_data=False).graph.node
    names = [f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in nodes]
    counts, layers = Counter(names), manifest.kv_cache.layers
    # From one attention to the next is a layer, if not the one that it began in.
    attention = [i for i, node in enumerate(nodes) if _writes_cache(node, manifest)]
    inside = Counter(names[attention[0] + 1 : attention[-1] + 1])
    rows = [
        (name, count, inside[name] / max(layers - 1, 1), count - inside[name] / max(layers - 1, 1) * layers)
        for name, count in counts.most_common()
    ]
    totals = ("all", *(sum(row[i] for row in rows) for i in (1, 2, 3)))  # type: ignore[misc]
    width = max(len(row[0]) for row in rows) + 2
    lines = [f"{'operator':<{width}}{'nodes':>7}{'a layer':>9}{'around':>8}"]
    lines += [f"{a:<{width}}{b:>7}{c:>9.3g}{d:>8.3g}" for a, b, c, d in (*rows, totals)]
    return "\n".join(lines)


def _writes_cache(node: onnx.NodeProto, manifest: Manifest) -> bool:
    return any(tensor.kind == "key" and tensor.present in node.output for tensor in manifest.kv_cache.tensors)
