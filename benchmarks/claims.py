"""Writes docs/claims.md: what papers claim, and whether it held here.

    python benchmarks/claims.py [--check]

`benchmarks/claims.toml` names each claim, and the committed figures that decide it. Every verdict is computed here from
those figures; `--check` compares with the page as it is, and fails where it is stale. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "claims.md"
CLAIMS = Path(__file__).with_suffix(".toml")

VALUES = ("mean", "after", "change", "points")
"""What files call a figure beside its interval."""

HELD, NOT_HELD, OPEN, YET = "held", "not held", "not measured here", "not measured yet"


@dataclass(frozen=True)
class Figure:
    """A number, its 95 % interval where there is one, and what it was measured on."""

    value: float
    low: float | None = None
    high: float | None = None
    on: str = ""

    def __str__(self) -> str:
        digits = 1 if abs(self.value) >= 2 or self.low is not None else 2
        interval = "" if self.low is None else f" [{self.low:.1f}, {self.high:.1f}]"
        return f"{self.value:.{digits}f}{interval}"


def figure(source: Mapping[str, Any], results: Path) -> Figure | None:
    """The figure that a source names; None where its file, or a line of a table, is not there (yet).

    Args:
        source: `file`, and `at`, the way to the figure in a JSON file (a table picks the item of a list that has all of
            its values); or, in a CSV file of `kedit compare`, a part of `data`, the `regime`, the `arm` and the
            `measure`.
        results: Folder of the files.

    Raises:
        KeyError: The file is there and has no such figure.
    """
    path = results / source["file"]
    if not path.exists():
        return None
    return _of_csv(source, path) if path.suffix == ".csv" else _of_json(source, path)


def _of_json(source: Mapping[str, Any], path: Path) -> Figure:
    content = json.loads(path.read_text(encoding="utf-8"))
    node: Any = content
    for step in source["at"]:
        if isinstance(step, dict):
            found = [item for item in node if all(item.get(key) == value for key, value in step.items())]
            if len(found) != 1:
                raise KeyError(f"{path.name}: {len(found)} items have {step}")
            node = found[0]
        elif isinstance(node, dict) and step in node:
            node = node[step]
        else:
            raise KeyError(f"{path.name}: there is no {step!r} at {source['at']}")
    data = content.get("data") or content.get("data_set", {}).get("name", "")
    on = "; ".join(text for text in (str(content.get("protocol", "")), str(data)) if text) or source.get("on", "")
    if not isinstance(node, dict):
        return Figure(float(node), on=on)
    value = next(node[name] for name in VALUES if node.get(name) is not None)
    low, high = node.get("ci") or (node.get("ci_low"), node.get("ci_high"))
    return Figure(float(value), low, high, on)


def _of_csv(source: Mapping[str, Any], path: Path) -> Figure | None:
    words = source["arm"].split()
    with path.open(encoding="utf-8", newline="") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["measure"] == source["measure"]
            and row["regime"] == source["regime"]
            and source["data"] in row["data"]
            and row["arm"].split()[0] == words[0]
            and set(words) <= set(row["arm"].split())
            and not row["arm"].endswith("/editor")  # what the editor alone would have done
        ]
    if not rows:
        return None
    if len(rows) > 1:
        raise KeyError(f"{path.name}: {len(rows)} lines are of {dict(source)}")
    row = rows[0]
    column = source.get("column", "mean")  # or `difference`, to the arm that the others are compared with
    ends = ("ci_low", "ci_high") if column == "mean" else (f"{column}_ci_low", f"{column}_ci_high")
    low, high = (float(row[name]) if row[name] else None for name in ends)
    name = json.loads(row.get("protocol") or "{}").get("name")
    on = f"{f'protocol {name}; ' if name else ''}regime {row['regime']}; {row['data']}, {row['records']} records"
    return Figure(float(row[column]), low, high, on)


def holds(test: Mapping[str, Any], left: Figure, right: Figure | None) -> tuple[bool, str]:
    """Whether a test passes, and its figures in words.

    `above` and `below` count only where the whole interval is on that side: of the number, or of the other figure's
    interval. `at_least` (another figure, or a number, less a `margin`), `at_most` and `near` (at most so far from 0)
    look at the numbers alone.
    """
    (how, bound) = next((how, test[how]) for how in ("above", "below", "at_least", "at_most", "near") if how in test)
    low, high = (left.value if end is None else end for end in (left.low, left.high))
    if right is not None and how == "at_least":
        margin = test.get("margin", 0)
        return left.value >= right.value - margin, f"{left}, at least {right}" + (f" less {margin}" if margin else "")
    if right is not None:
        ends = [right.value if end is None else end for end in (right.low, right.high)]
        passed = low > ends[1] if how == "above" else high < ends[0]
        return passed, f"{left} {'above' if how == 'above' else 'below'} {right}"
    limit = float(bound)
    passed = {
        "above": low > limit,
        "below": high < limit,
        "at_least": left.value >= limit,
        "at_most": left.value <= limit,
        "near": abs(left.value) <= limit,
    }[how]
    words = {"at_least": "at least {}", "at_most": "at most {}", "near": "within {} of 0"}.get(how, f"{how} {{}}")
    return passed, f"{left}, {words.format(f'{limit:g}')}"


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, the figures that decide it, and where they are from."""

    claim: Mapping[str, Any]
    verdict: str
    figures: str
    on: str
    files: tuple[str, ...]


def judged(claim: Mapping[str, Any], results: Path = RESULTS) -> Judged:
    """Decides a claim: held where all its tests pass, not held where one does not, whatever figures are missing."""
    tests = claim.get("tests", [])
    if not tests:
        return Judged(claim, OPEN, claim["why"], "", ())
    lines, passed, on, missing = [], [], [], False
    for test in tests:
        bound = next((test[how] for how in ("above", "below", "at_least") if how in test), None)
        left = figure(test["of"], results)
        right = figure(bound, results) if isinstance(bound, dict) else None
        if left is None or (isinstance(bound, dict) and right is None):
            missing = True
            continue
        one, words = holds(test, left, right)
        passed.append(one)
        on.append(left.on)
        lines.append(f"{test['label']}: {words}: {'yes' if one else 'no'}")
    sources = [source for test in tests for source in test.values() if isinstance(source, dict)]
    files = tuple(dict.fromkeys(source["file"] for source in sources))
    if missing and all(passed):
        return Judged(claim, YET, "; ".join(lines) or "the run that decides it is not done", "", files)
    return Judged(claim, HELD if all(passed) else NOT_HELD, "; ".join(lines), "; ".join(dict.fromkeys(on)), files)


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    content = tomllib.loads(CLAIMS.read_text(encoding="utf-8"))
    verdicts = [judged(claim, results) for claim in content["claim"]]
    counts = {kind: sum(one.verdict == kind for one in verdicts) for kind in (HELD, NOT_HELD, YET, OPEN)}
    parts = [
        "# What papers claim, and what held here",
        "<!-- written by benchmarks/claims.py from benchmarks/claims.toml and the committed figures: change these -->",
        content["about"].strip(),
        ", ".join(f"{kind}: {n}" for kind, n in counts.items()) + f"; {len(verdicts)} claims.",
    ]
    for name, paper in content["paper"].items():
        own = [one for one in verdicts if one.claim["paper"] == name]
        lines = [f"## {name}", paper["title"], "| claim | here | figures | measured on | file |\n|---|---|---|---|---|"]
        lines[-1] += "".join("\n" + _line(one) for one in own)
        parts += lines
    return "\n\n".join(parts) + "\n"


def _line(one: Judged) -> str:
    folder = "" if one.verdict == YET else "benchmarks/results/"  # not all of these are there
    files = ", ".join(f"`{folder}{name}`" for name in one.files)
    cells = (one.claim["says"], f"**{one.verdict}**", one.figures, one.on, files)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page is stale")
    args = parser.parse_args()
    text = page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is stale: run python benchmarks/claims.py")


if __name__ == "__main__":
    main()
