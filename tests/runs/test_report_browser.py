"""The page of `kedit report` in headless Chromium: nothing is fetched, search works, and all fits two screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kedit.cli import main
from tests.support.browser import CHROMIUM, Browser, browser
from tests.support.report_cases import HOSTILE, extra_files, three_arms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]
WIDTHS = (390, 1280)

BEYOND = """(() => {
  const width = document.documentElement.clientWidth, found = [];
  for (const one of document.querySelectorAll("body *")) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !one.parentElement.closest(".box, pre, .skip") && !one.closest(".skip"))
      found.push(one.tagName + " " + one.className + " " + Math.round(box.right));
  }
  return document.documentElement.scrollWidth > width ? ["the page", ...found] : found;
})()"""
"""What is wider than the screen, but for what scrolls in its box."""

OVERLAP = """(() => {
  const found = [];
  for (const svg of document.querySelectorAll("svg")) {
    const whole = svg.getBoundingClientRect();
    const boxes = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([text, a], n) => {
      if (a.right > whole.right + 1 || a.left < whole.left - 1 || a.bottom > whole.bottom + 1)
        found.push("out: " + text);
      for (const [other, b] of boxes.slice(n + 1))
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
            Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) found.push(text + " / " + other);
    });
  }
  return found;
})()"""
"""Texts of figures that lie on each other, or beyond the figure."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 20 arms, with everything that a page can show."""
    folder = tmp_path_factory.mktemp("report")
    folders = three_arms(folder / "runs", records=12, arms=20)
    extra_files(Path(folders[0]))
    main(["report", *folders, "--against", "rome", "--out", str(folder / "out"), "--resamples", "100"])
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_fetches_nothing(page: Path, chromium: Browser, width: int, dark: bool) -> None:
    chromium.open(page, width, dark=dark)
    assert chromium.requests == [page.resolve().as_uri()]
    assert chromium.errors == []
    assert chromium.value("performance.getEntriesByType('resource').length") == 0
    assert chromium.value("document.title") != "owned"
    chromium.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert chromium.value(BEYOND) == []
    assert chromium.value(OVERLAP) == []
    assert chromium.value("document.querySelectorAll('svg').length") == 4  # moves, trade-off, paths, cosines


def test_records_are_searched_filtered_and_paged(page: Path, chromium: Browser) -> None:
    chromium.open(page, 1280)
    heads = "[...document.querySelectorAll('#list h4')].map((head) => head.textContent)"

    def put(name: str, value: str) -> list[str]:
        event = "input" if name == "text" else "change"
        chromium.value(
            f"one = document.getElementById('{name}'); one.value = '{value}'; one.dispatchEvent(new Event('{event}'));"
            "new Promise((done) => setTimeout(done, 300))"
        )
        return chromium.value(heads)

    assert chromium.value(heads)[0].startswith("case-0")
    assert len(chromium.value(heads)) == 5
    chromium.value("document.getElementById('next').click()")
    assert chromium.value(heads)[0].startswith("case-5")
    assert [head[:6] for head in put("text", "answer7")] == ["case-7"]
    assert chromium.value("document.querySelector('#list mark').textContent") == "Answer7"
    assert [head[:6] for head in put("text", "document.title")] == ["case-1", "case-2"]
    assert put("text", "no such words") == []
    assert "No record" in chromium.value("document.getElementById('count').textContent")
    put("text", "")
    put("kind", "paraphrase")
    assert chromium.value("document.querySelector('#list table').rows[0].cells.length") == 2
    shown = put("verdict", "prefers")
    verdicts = "[...document.querySelectorAll('#list article')].every((one) => one.querySelector('.v.prefers'))"
    assert shown
    assert chromium.value(verdicts)
    chromium.value("document.querySelectorAll('#arms input').forEach((one, n) => { if (n) one.click(); })")
    assert chromium.value("document.querySelector('#list table').rows.length") == 3  # heads, before, one arm
    assert chromium.value("document.querySelectorAll('#list script, #list img').length") == 0
    assert HOSTILE[:30] not in chromium.value("document.title")


def test_a_link_can_hold_a_search_and_tables_are_sorted(page: Path, chromium: Browser) -> None:
    chromium.open(page, 1280, fragment="#q=Answer9")
    assert chromium.value("document.querySelectorAll('#list article').length") == 1
    table = "document.getElementById('table-1-edits').parentElement.querySelector('table')"
    column = f"[...{table}.tBodies[0].rows].slice(1).map((row) => Number(row.cells[2].dataset.v))"
    chromium.value(f"{table}.tHead.rows[0].cells[2].querySelector('button').click()")
    values = chromium.value(column)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 1
    assert chromium.value(f"{table}.tBodies[0].rows[0].className") == "base"


def test_it_is_printed_without_its_controls(page: Path, chromium: Browser, tmp_path: Path) -> None:
    chromium.open(page, 1280)
    chromium.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
