"""Lines, texts and tips of an SVG, and what ends it. ElementTree escapes every text."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from markupsafe import Markup

LEAST = 0.75
"""Of its width, that a figure has on a phone: its letters stay readable, the rest is scrolled to."""


def drawing(width: float, height: float, title: str) -> ET.Element:
    """An empty figure.

    Args:
        width: In pixels.
        height: In pixels.
        title: What it shows, for who cannot see it.
    """
    size = {"viewBox": f"0 0 {rounded(width)} {rounded(height)}", "width": rounded(width), "height": rounded(height)}
    style = {"style": f"min-width: {rounded(LEAST * width)}px", "role": "img", "aria-label": legal(title)}
    return ET.Element("svg", size | style)


def add_line(above: ET.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    """A line of a class of the style sheet."""
    ET.SubElement(
        above, "line", {"x1": rounded(x1), "y1": rounded(y1), "x2": rounded(x2), "y2": rounded(y2), "class": kind}
    )


def add_text(
    above: ET.Element, x: float, y: float, text: str, kind: str, anchor: str, more: dict[str, str] | None = None
) -> ET.Element:
    """A text at a place.

    Args:
        above: What it is in.
        x: Of its anchor.
        y: Of its base line.
        text: It.
        kind: Class of the style sheet.
        anchor: `start`, `middle` or `end`.
        more: Other attributes.
    """
    place = {"x": rounded(x), "y": rounded(y), "class": kind, "text-anchor": anchor}
    element = ET.SubElement(above, "text", place | (more or {}))
    element.text = legal(text)
    return element


def add_tip(above: ET.Element, text: str) -> None:
    """What a pointer over an element is told."""
    ET.SubElement(above, "title").text = legal(text)


def legal(text: str) -> str:
    """Without what no XML can hold."""
    return "".join(c if c.isprintable() else "?" for c in text)


def finished(root: ET.Element) -> Markup:
    """The figure for a template."""
    return Markup(ET.tostring(root, encoding="unicode"))  # ElementTree has escaped every text


def rounded(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")
