"""Two rankings side by side: a line for each arm, from its place in one to its place in the other."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as ET

from markupsafe import Markup

from kedit.report.svg_parts import add_line, add_text, add_tip, drawing, finished, rounded
from kedit.text.lines import cut

LABEL = 34  # characters of a name
_CHARACTER, _ROW, _TOP, _BETWEEN, _GAP = 6.8, 20.0, 34.0, 190.0, 8.0

Side = tuple[str, int, str]  # name, place and number


def slope(left: Sequence[Side], right: Sequence[Side], heads: tuple[str, str], title: str) -> Markup:
    """The figure. Who gains is one colour, who loses another, who stays is grey.

    Args:
        left: Of each arm by the first ranking.
        right: The same arms by the other.
        heads: What the rankings are by.
        title: What the figure shows, for who cannot see it.
    """
    rows = [{name: n for n, (name, _, _) in enumerate(_sorted(side, left))} for side in (left, right)]
    places = [{name: place for name, place, _ in side} for side in (left, right)]
    room = _CHARACTER * max(
        *(min(len(name), LABEL) + len(number) + 6 for name, _, number in (*left, *right)), *map(len, heads)
    )
    edges = room, room + _BETWEEN
    root = drawing(2 * room + _BETWEEN, _TOP + _ROW * len(left), title)
    for edge, head, anchor in zip(edges, heads, ("end", "start"), strict=True):
        add_text(root, edge, 16, head, "axis", anchor)
    for name in rows[0]:
        moved = places[0][name] - places[1][name]
        kind = "rise" if moved > 0 else "fall" if moved < 0 else "stay"
        ups = [_TOP + _ROW * row[name] for row in rows]
        group = ET.SubElement(root, "g", {"class": kind})
        add_line(group, edges[0] + _GAP, ups[0], edges[1] - _GAP, ups[1], "way")
        for edge, up in ((edges[0] + _GAP, ups[0]), (edges[1] - _GAP, ups[1])):
            ET.SubElement(group, "circle", {"cx": rounded(edge), "cy": rounded(up), "r": "3", "class": "dot"})
        add_tip(group, f"{name}: from {places[0][name]} to {places[1][name]}")
    for nth, (side, edge, anchor) in enumerate(zip((left, right), edges, ("end", "start"), strict=True)):
        for name, place, number in side:
            short = cut(name, LABEL)
            text = f"{short} ({number}) {place}." if nth == 0 else f"{place}. {short} ({number})"
            add_text(root, edge, _TOP + _ROW * rows[nth][name] + 4, text, "label", anchor)
    return finished(root)


def _sorted(side: Sequence[Side], first: Sequence[Side]) -> list[Side]:
    """By place; equals in the order of the first ranking."""
    order = {name: n for n, (name, _, _) in enumerate(sorted(first, key=lambda one: one[1]))}
    return sorted(side, key=lambda one: (one[1], order[one[0]]))
