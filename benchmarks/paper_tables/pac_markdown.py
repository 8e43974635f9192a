"""The table of a result file of pac_table.py as Markdown.

python benchmarks/paper_tables/pac_markdown.py benchmarks/results/pac_zsre_test.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "efficacy": "rewrite/token_accuracy",
    "generality": "paraphrase/token_accuracy",
    "locality": "neighborhood/unchanged_tokens",
    "score": "score/tokens_arithmetic",
    "exact match": "rewrite/exact",
}


def cell(figures: dict[str, Any], name: str) -> str:
    """A figure with its interval."""
    if name not in figures:
        return ""
    low, high = figures[name]["ci"]
    return f"{figures[name]['after']:.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Print it."""
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"| arm | {' | '.join(COLUMNS)} | steps per edit | seconds per edit |")
    print("| --- " * (len(COLUMNS) + 3) + "|")
    first = next(iter(found["arms"].values()))["figures"]
    before = ["" if first[name]["before"] is None else f"{first[name]['before']:.1f}" for name in COLUMNS.values()]
    print(f"| unedited | {' | '.join(before)} | | |")
    for name, arm in found["arms"].items():
        cells = [cell(arm["figures"], column) for column in COLUMNS.values()]
        steps = "" if arm["steps_mean"] is None else f"{arm['steps_mean']:.1f}"
        print(f"| {name} | {' | '.join(cells)} | {steps} | {arm['seconds_per_edit']:.1f} |")


if __name__ == "__main__":
    main()
