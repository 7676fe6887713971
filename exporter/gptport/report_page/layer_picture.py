"""A decoder layer as a picture: a box for each node, what it takes above it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layered import layout
from .svg import drawing, element

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from markupsafe import Markup

    from ..layer_graph import LayerGraph, LayerNode

_LETTER, _PAD, _GAP = 6.3, 8, 12
_LINE, _RANK = 13, 24  # heights: of a line of text, between two ranks

_KINDS = {
    "matrix": ("Linear", "MatMul", "MatMulNBits", "MatMulIntegerToFloat", "Gemm", "MoE", "QMoE", "Experts"),
    "attention": ("Attention", "GroupQueryAttention"),
}


def picture(layer: LayerGraph) -> Markup:
    """Draw a layer."""
    boxes = [_lines(node) for node in layer.nodes]
    edges = [(a, b) for b, node in enumerate(layer.nodes) for a in node.before]
    edges += [(_border(boxes, what), b) for b, node in enumerate(layer.nodes) for what in node.takes]
    edges += [(a, _border(boxes, what)) for a, node in enumerate(layer.nodes) for what in node.gives]
    widths = [max(map(len, lines)) * _LETTER + 2 * _PAD for lines in boxes]
    placed = layout(widths, edges, _GAP)
    heights = [len(lines) * _LINE + 8 for lines in boxes]
    tops = _tops(placed.ranks, heights)
    middle = {
        rank: (top + max(h for h, r in zip(heights, placed.ranks, strict=True) if r == rank) / 2)
        for rank, top in tops.items()
    }
    parts = []
    for a, b in edges:
        ends = [
            (placed.centers[a], middle[placed.ranks[a]] + heights[a] / 2),
            *((x, middle[rank]) for rank, x in enumerate(placed.bends[a, b], placed.ranks[a] + 1)),
            (placed.centers[b], middle[placed.ranks[b]] - heights[b] / 2),
        ]
        parts.append(element("path", d=_curve(ends), class_="edge"))
    for i, lines in enumerate(boxes):
        class_ = _kind(layer.nodes[i].operator) if i < len(layer.nodes) else "border"
        parts += _box(lines, placed.centers[i], middle[placed.ranks[i]], widths[i], heights[i], class_)
    last = max(tops)
    height = 2 * middle[last] - tops[last]
    return drawing(placed.width, height, f"Layer {layer.index}: {len(layer.nodes)} nodes", parts, "layer")


def _lines(node: LayerNode) -> list[str]:
    return [node.operator, *([node.detail] if node.detail else [])]


def _border(boxes: list[list[str]], what: str) -> int:
    """A new box for what crosses the border of the layer."""
    boxes.append([what])
    return len(boxes) - 1


def _kind(operator: str) -> str:
    found = next((kind for kind, operators in _KINDS.items() if operator in operators), "")
    return found or ("norm" if "Norm" in operator else "plain")


def _tops(ranks: tuple[int, ...], heights: list[int]) -> dict[int, float]:
    tops, y = {}, 1.0
    for rank in range(max(ranks) + 1):
        tops[rank] = y
        y += max(h for h, r in zip(heights, ranks, strict=True) if r == rank) + _RANK
    return tops


def _curve(points: list[tuple[float, float]]) -> str:
    """A line through points from top to bottom that leaves and reaches each upright."""
    (x, y), *rest = points
    drawn = f"M{x:.1f} {y:.1f}"
    for to_x, to_y in rest:
        half = (y + to_y) / 2
        drawn += f" C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    return drawn


def _box(lines: list[str], x: float, y: float, width: float, height: float, class_: str) -> list[Element]:
    first = y - (len(lines) - 1) * _LINE / 2 + 4
    texts = [
        element("text", line, x=x, y=first + i * _LINE, class_="detail" if i else "operator")
        for i, line in enumerate(lines)
    ]
    if class_ == "border":
        texts[0].set("class", "border")
        return texts
    box = element(
        "rect", x=x - width / 2, y=y - height / 2, width=width, height=height, rx=3, class_=f"box {class_}"
    )
    return [box, *texts]
