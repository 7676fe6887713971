"""How many nodes of which operator a graph has."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .manifest import Manifest


def counted(folder: Path, manifest: Manifest) -> str:
    """A table of them: in all, in a decoder layer on average, and around the layers."""
    graph = onnx.load(folder / manifest.graph, load_external_data=False).graph
    found = list(nodes(graph, "then_branch"))  # of two graphs in one, that with past
    names = [f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in found]
    counts, layers = Counter(names), manifest.kv_cache.layers
    # From one attention to the next is a layer, if not the one that it began in.
    attention = [i for i, node in enumerate(found) if _writes_cache(node, manifest)]
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


def in_integers(folder: Path, manifest: Manifest) -> str:
    """Which operators of a graph take weights in integers, of how many bits, and which experts do not; "" if none does."""
    graph = onnx.load(folder / manifest.graph, load_external_data=False).graph
    bits = {"MatMulNBits": "bits", "GatherBlockQuantized": "bits", "QMoE": "expert_weight_bits"}
    found = Counter(
        f"{node.op_type} of {attribute.i} bits"
        for node in nodes(graph)
        for attribute in node.attribute
        if attribute.name == bits.get(node.op_type)
    )
    by_rows = "MatMulIntegerToFloat"
    found.update(f"{by_rows} of 8 bits" for node in nodes(graph) if node.op_type == by_rows)
    if not found:
        return ""
    found.update("MoE in floats" for node in nodes(graph) if node.op_type == "MoE")
    return ", ".join(f"{count} × {what}" for what, count in found.items())


def nodes(graph: onnx.GraphProto, branch: str | None = None) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, those of its branches behind the node that chooses; of one `branch`, if that is given."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and branch in (None, attribute.name):
                yield from nodes(attribute.g, branch)


def _writes_cache(node: onnx.NodeProto, manifest: Manifest) -> bool:
    return any(tensor.kind == "key" and tensor.present in node.output for tensor in manifest.kv_cache.tensors)
