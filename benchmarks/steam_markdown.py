"""Markdown tables of steam_table.py's result files, as in docs/experiments/steam_smollm2.md. Needs no torch.

python benchmarks/steam_markdown.py benchmarks/results/steam_sweep_counterfact.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    ("rewrite/exact", "efficacy"),
    ("paraphrase/exact", "paraphrase exact"),
    ("paraphrase/success", "paraphrase success"),
    ("neighborhood/unchanged", "neighbours unchanged"),
    ("portability/port_acc", "port_acc"),
    ("portability/port_em", "port_em"),
    ("portability/port_ll", "port_ll"),
)
TEXTS = ("fluency", "consistency")


def cell(found: Mapping[str, Any] | None, key: str) -> str:
    """A value with its interval; empty where it was not measured."""
    if found is None:
        return ""
    low, high = found["ci"]
    digits = 1 if abs(found[key]) >= 10 else 2
    sign = "+" if key == "change" else ""
    return f"{found[key]:{sign}.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(result: Mapping[str, Any], key: str) -> str:
    """All arms: `after`, as they are; `change`, beside the editor alone, record by record."""
    arms: Mapping[str, Any] = result["arms"]
    shown = [(name, title) for name, title in COLUMNS if any(name in arm["figures"] for arm in arms.values())]
    last = ["s per edit", "steps"] if key == "after" else ["cosine: unedited, editor, here", "nearer than the editor's"]
    head = ["arm", *(title for _, title in shown), *TEXTS, *last]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name, arm in arms.items():
        compared = arm["compared_with_first"]
        if key == "change" and name == arm["first_arm"]:
            continue
        source = arm["figures"] | arm["texts"] if key == "after" else compared
        cells = [cell(source.get(column), key) for column in [*(column for column, _ in shown), *TEXTS]]
        cosine = compared.get("cosine")
        if key == "after":
            cells += [f"{arm['seconds_per_edit']:.1f}", f"{arm['steps_mean']:.1f}"]
        elif cosine is None:
            cells += ["", ""]
        else:
            cells += [f"{cosine['unedited']:.3f}, {cosine['first_arm']:.3f}, {cosine['this_arm']:.3f}",
                      f"{cosine['above_first_arm_percent']:.0f} %"]  # fmt: skip
        title = name if key == "after" else f"{name} beside {arm['first_arm']}"
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables of every file."""
    for path in sys.argv[1:]:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
        print(f"{path}: {len(result['records'])} records\n")
        print(table(result, "after"), table(result, "change"), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main()
