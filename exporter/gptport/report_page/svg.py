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
    width: float, height: float, title: str, children: list[ElementTree.Element], class_: str
) -> Markup:
    """A picture in a coordinate system of that size, with a title for those who cannot see it."""
    root = element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width=width,
        height=height,
        role="img",
        class_=class_,
    )
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # ElementTree escapes


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
