"""Tables as Markdown, CSV and LaTeX: a cell stays a cell, whatever stands in it. And where labels of figures go."""

from __future__ import annotations

import csv
import io
import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from kedit.report.grid import Column, Entry, Grid
from kedit.report.grid_text import as_csv, as_latex, as_markdown
from kedit.report.slope import slope
from kedit.report.svg import Axis, Point, Series, apart, around, lines, percent, scatter

NASTY = "a|b_c*d`e<script>&\\{}$%#^~[x](y)\nsecond"


def grid(text: str = NASTY) -> Grid:
    rows = (
        (Entry(text), Entry("12.3", "[1.0, 20.0]", 12.3456789, 1.0, 20.0, star=True)),
        (Entry("=1+1"), Entry("50.0", "", 50.0, best=True)),
    )
    return Grid("t", text, (Column("arm", text=True), Column("rate", "%")), rows, (text,))


def test_markdown_has_as_many_cells_as_the_table() -> None:
    text = as_markdown(grid())
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [3] * 4
    assert "<script" not in text.replace("\\<script", "")
    assert r"12.3\* \[1.0, 20.0\]" in table[2]
    assert "**50.0**" in table[3]


def test_csv_has_every_digit_and_no_formula() -> None:
    found = list(csv.reader(io.StringIO(as_csv(grid()))))
    assert found[0] == ["arm", "rate (%)", "rate (%) low", "rate (%) high"]
    assert found[1][1:] == ["12.3456789", "1.0", "20.0"]
    assert found[1][0] == " ".join(NASTY.split())
    assert found[2] == ["'=1+1", "50.0", "", ""]


def test_latex_escapes_what_latex_reads() -> None:
    text = as_latex(grid())
    assert text.count("{") == text.count("}")
    assert [line.count("&") - line.count(r"\&") for line in text.splitlines() if line.endswith(r"\\")] == [1, 1, 1]
    assert all(rule in text for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\begin{tabular}{lr}"))
    body = text.partition("\\midrule")[2].partition("\\bottomrule")[0]
    assert r"a\textbar{}b\_c*d`e\textless{}script\textgreater{}\&\textbackslash{}\{\}\$\%\#\textasciicircum{}" in body
    assert r"12.3$^{*}$ {\scriptsize [1.0, 20.0]}" in body
    assert r"\textbf{50.0}" in body


@pytest.mark.parametrize("wanted", [[50.0] * 10, [0.0, 100.0, 0.0], [99.0, 100.0, 98.0], []])
def test_labels_are_apart(wanted: list[float]) -> None:
    placed = apart(wanted, 10, 0, 100)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(sorted(placed)))
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in placed)
    assert [placed.index(x) for x in sorted(placed)] == sorted(range(len(wanted)), key=lambda n: (wanted[n], n))


def test_figures_are_xml_with_their_texts_escaped() -> None:
    points = [Point(f"{NASTY} {n}", 50.0, 50.0, (40.0, 60.0), (45.0, 55.0), n == 0) for n in range(30)]
    root = ET.fromstring(scatter(points, percent("x"), percent("y"), NASTY))
    labels = [element for element in root.iter("text") if "label" in str(element.get("class"))]
    ups = sorted(float(str(element.get("y"))) for element in labels)
    assert len(ups) == 30
    assert min(b - a for a, b in pairwise(ups)) >= 14.9
    assert max(ups) < float(str(root.get("height")))
    series = [Series("a", [1, 10, 100], [1e-3, 1.0, 1e4], [(1e-3, 2e-3)] * 3)]
    drawn = ET.fromstring(lines(series, Axis("n", 1, 100, log=True), around("y", [1e-3, 1e4]), "curve"))
    ticks = [element.text for element in drawn.iter("text") if element.get("class") == "tick"]
    assert {"1", "10", "100", "0.001", "10,000"} <= set(ticks)


def test_a_slope_has_a_row_for_each_arm() -> None:
    """Equals in the order of the first ranking; lines go from row to row."""
    left = [("b", 2, "8"), ("a", 1, "9"), ("c", 3, "7"), (NASTY, 4, "1")]
    right = [("b", 1, "9"), ("c", 1, "9"), ("a", 3, "2"), (NASTY, 4, "1")]
    root = ET.fromstring(slope(left, right, ("x", "y"), "t"))
    shown = [(element.text or "", float(str(element.get("y")))) for element in root.iter("text")][2:]
    assert [text[:1] for text, _ in sorted(shown[:4], key=lambda one: one[1])] == ["a", "b", "c", "a"]
    assert [text[:4] for text, _ in sorted(shown[4:], key=lambda one: one[1])] == ["1. b", "1. c", "3. a", "4. a"]
    kinds = [str(element.get("class")) for element in root.iter("g")]
    assert sorted(kinds) == ["fall", "rise", "rise", "stay"]
    assert len({up for _, up in shown}) == 4


def test_axes_of_equal_values_have_room() -> None:
    assert around("y", [2.0, 2.0]).low < 2 < around("y", [2.0, 2.0]).high
    assert around("y", [0.0, 0.0]).low < 0 < around("y", [0.0, 0.0]).high
    assert around("y", [1.0, 2.0]).marks() == pytest.approx([1.0, 1.5, 2.0])
