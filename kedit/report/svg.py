"""Small figures as SVG: points with intervals, and lines. Their texts are texts, their colours the page's.

Labels stand in a column to the right, apart from each other, each with a line to what it names. So no two texts can
lie on each other, however near the points are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from kedit.report.svg_parts import add_line, add_text, add_tip, drawing, finished, rounded
from kedit.text.lines import cut

COLOURS = 8  # classes k0 .. k7 of the style sheet
LABEL = 42  # characters of a label
_LINE = 15.0  # between two labels
_CHARACTER, _BOLD = 7.0, 8.4  # width of a letter of a label, generously
_LEFT, _TOP, _BOTTOM = 58.0, 14.0, 46.0
_POINTS, _LINES = (400.0, 300.0), (280.0, 190.0)  # width and height of a panel


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: What it shows, with its unit.
        low: Where it begins.
        high: Where it ends.
        log: Whether it is logarithmic.
        ticks: Where it is marked; None: at round numbers.
    """

    title: str
    low: float
    high: float
    log: bool = False
    ticks: tuple[float, ...] | None = None

    def at(self, value: float) -> float:
        """0 at its beginning, 1 at its end."""
        low, high, x = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return (min(max(x, min(low, high)), max(low, high)) - low) / (high - low) if high != low else 0.5

    def marks(self) -> list[float]:
        """Where it is marked."""
        if self.ticks is not None:
            return list(self.ticks)
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [10.0**d for d in decades if self.low <= 10.0**d <= self.high] or [self.low, self.high]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Point:
    """A point with its intervals."""

    label: str
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    strong: bool = False


@dataclass(frozen=True)
class Series:
    """A line: its points, and their intervals where there are some."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    ends: Sequence[tuple[float, float]] = ()
    faint: bool = False


def percent(title: str) -> Axis:
    """An axis from 0 to 100."""
    return Axis(title, -2.0, 102.0, ticks=(0, 20, 40, 60, 80, 100))


def around(title: str, values: Sequence[float]) -> Axis:
    """An axis that holds all values; logarithmic where they span much and are positive."""
    low, high = min(values), max(values)
    if low > 0 and high > 30 * low:
        return Axis(title, low / 1.15, high * 1.15, log=True)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-3)
    return Axis(title, low - room, high + room)


def scatter(points: Sequence[Point], x: Axis, y: Axis, title: str) -> Markup:
    """Points with both intervals.

    Args:
        points: Them; a strong one is marked.
        x: The axis below.
        y: The axis to the left.
        title: What the figure shows, for who cannot see it.
    """
    size = _POINTS[0], max(_POINTS[1], _LINE * len(points))
    root, panel = _panel(x, y, size, [(point.label, point.strong) for point in points], title)
    for n, point in enumerate(points):
        cx, cy = panel.place(point.x, point.y)
        (left, top), (right, bottom) = (
            panel.place(point.across[0], point.up[1]),
            panel.place(point.across[1], point.up[0]),
        )
        group = ET.SubElement(root, "g", {"class": f"k{n % COLOURS}"})
        add_line(group, left, cy, right, cy, "ci")
        add_line(group, cx, top, cx, bottom, "ci")
        shape = {"cx": rounded(cx), "cy": rounded(cy), "r": "6.5" if point.strong else "4.5", "class": "dot"}
        add_tip(
            ET.SubElement(group, "circle", shape), f"{point.label}: {y.title} {point.y:.1f}, {x.title} {point.x:.1f}"
        )
    ends = [panel.place(point.x, point.y) for point in points]
    _labels(root, panel, ends, [(point.label, f"k{n % COLOURS}", point.strong) for n, point in enumerate(points)])
    return finished(root)


def lines(series: Sequence[Series], x: Axis, y: Axis, title: str) -> Markup:
    """Lines, with intervals where there are some.

    Args:
        series: Them; from the ninth on they are dashed, faint ones dotted.
        x: The axis below.
        y: The axis to the left.
        title: What the figure shows, for who cannot see it.
    """
    size = _LINES[0], max(_LINES[1], _LINE * len(series))
    root, panel = _panel(x, y, size, [(one.label, False) for one in series], title)
    for n, one in enumerate(series):
        kind = f"k{n % COLOURS}" + (" dash" if n // COLOURS % 2 else "") + (" faint" if one.faint else "")
        group = ET.SubElement(root, "g", {"class": kind})
        spots = [panel.place(a, b) for a, b in zip(one.x, one.y, strict=True)]
        path = ET.SubElement(
            group, "polyline", {"points": " ".join(f"{rounded(a)},{rounded(b)}" for a, b in spots), "class": "way"}
        )
        add_tip(path, one.label)
        for (cx, _), (low, high) in zip(spots, one.ends, strict=False):
            add_line(group, cx, panel.place(one.x[0], high)[1], cx, panel.place(one.x[0], low)[1], "ci")
        if len(spots) <= 12:
            for (cx, cy), value in zip(spots, one.y, strict=True):
                add_tip(
                    ET.SubElement(group, "circle", {"cx": rounded(cx), "cy": rounded(cy), "r": "2.6", "class": "dot"}),
                    f"{one.label}: {value:.4g}",
                )
    ends = [panel.place(one.x[-1], one.y[-1]) for one in series]
    _labels(root, panel, ends, [(one.label, f"k{n % COLOURS}", False) for n, one in enumerate(series)])
    return finished(root)


def apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near the wanted ones, in their order, `gap` from each other at least, between `low` and `high`.

    Args:
        wanted: Places.
        gap: The least distance.
        low: The first place there is.
        high: The last; there must be room for all.
    """
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    placed = [0.0] * len(wanted)
    free = low
    for n in order:
        placed[n] = max(wanted[n], free)
        free = placed[n] + gap
    free = high
    for n in reversed(order):
        placed[n] = min(placed[n], free)
        free = placed[n] - gap
    return placed


@dataclass(frozen=True)
class _Panel:
    x: Axis
    y: Axis
    width: float
    height: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        return _LEFT + self.width * self.x.at(x), _TOP + self.height * (1 - self.y.at(y))


def _panel(
    x: Axis, y: Axis, size: tuple[float, float], labels: Sequence[tuple[str, bool]], title: str
) -> tuple[ET.Element, _Panel]:
    wide, height = size
    room = 34 + max(((_BOLD if strong else _CHARACTER) * min(len(label), LABEL) for label, strong in labels), default=0)
    width, whole = _LEFT + wide + room, _TOP + height + _BOTTOM
    root = drawing(width, whole, title)
    panel = _Panel(x, y, wide, height)
    for mark in x.marks():
        across = panel.place(mark, y.low)[0]
        add_line(root, across, _TOP, across, _TOP + height, "rule")
        add_text(root, across, _TOP + height + 15, _said(mark), "tick", "middle")
    for mark in y.marks():
        up = panel.place(x.low, mark)[1]
        add_line(root, _LEFT, up, _LEFT + wide, up, "rule")
        add_text(root, _LEFT - 6, up + 4, _said(mark), "tick", "end")
    add_text(root, _LEFT + wide / 2, _TOP + height + 36, x.title, "axis", "middle")
    middle = _TOP + height / 2
    turned = {"transform": f"rotate(-90 14 {rounded(middle)})"}
    add_text(root, 14, middle, y.title, "axis", "middle", turned)
    return root, panel


def _labels(
    root: ET.Element, panel: _Panel, ends: Sequence[tuple[float, float]], labels: Sequence[tuple[str, str, bool]]
) -> None:
    """The names, to the right, with a line to what they name."""
    places = apart([y for _, y in ends], _LINE, _TOP + 5, _TOP + panel.height - 2)
    edge = _LEFT + panel.width
    for (x, y), place, (label, kind, strong) in zip(ends, places, labels, strict=True):
        group = ET.SubElement(root, "g", {"class": kind})
        points = f"{rounded(x)},{rounded(y)} {rounded(edge + 4)},{rounded(place)} {rounded(edge + 22)},{rounded(place)}"
        ET.SubElement(group, "polyline", {"points": points, "class": "lead"})
        text = add_text(group, edge + 26, place + 4, cut(label, LABEL), "label strong" if strong else "label", "start")
        if len(label) > LABEL:
            add_tip(text, label)


def _said(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{round(value, 10):.6g}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10 ... of its size."""
    size = 10.0 ** math.floor(math.log10(step)) if step > 0 else 1.0
    return next((n * size for n in (1, 2, 5, 10) if n * size >= step * 0.999), 10 * size)
