"""SVG elements. Whatever they are given is escaped."""

from __future__ import annotations

from xml.etree import ElementTree

from markupsafe import Markup


def element(tag: str, *children: ElementTree.Element | str, **attributes: str | float) -> ElementTree.Element:
    """An element; `_` in an attribute's name stands for `-`, one at its end is dropped, numbers keep one decimal."""
    made = ElementTree.Element(
        tag, {name.rstrip("_").replace("_", "-"): _value(value) for name, value in attributes.items()}
    )
    for child in children:
        if isinstance(child, str):
            made.text = child
        else:
            made.append(child)
    return made


def drawing(
    width: float,
    height: float,
    title: str,
    children: list[ElementTree.Element],
    class_: str,
    fit: str = "xMidYMid",
) -> Markup:
    """A picture in a coordinate system of that size, with room for the outermost lines and a title to be read out.

    `fit` is SVG's `preserveAspectRatio`.
    """
    root = element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"-1 -1 {_value(width + 2)} {_value(height + 2)}",
        width=width + 2,
        height=height + 2,
        role="img",
        preserveAspectRatio=fit,
        class_=class_,
    )
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree escapes


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
