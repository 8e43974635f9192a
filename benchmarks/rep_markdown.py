"""The tables of docs/experiments/rep_smollm2.md from the files under benchmarks/results.

python benchmarks/rep_markdown.py rep_rome_test rep_sequential_rome
"""

from __future__ import annotations

import json
import sys
from typing import Any

from common import ROOT

ROWS = {
    "rewrite": "success (the edited prompt)",
    "paraphrase_id": "other names, id",
    "paraphrase_ood": "other names, ood",
    "shuffle_id": "scrambled names, id",
    "shuffle_ood": "scrambled names, ood",
    "long_context": "long context, unseen",
    "neighborhood": "neighbourhood unchanged",
}


def cell(line: dict[str, Any]) -> str:
    """A figure and its interval."""
    return f"{line['after']:.1f} [{line['ci_low']:.1f}, {line['ci_high']:.1f}]"


def gain(line: dict[str, Any] | None) -> str:
    """A difference to the editor and its interval."""
    return "" if line is None else f"; {line['points']:+.1f} [{line['ci'][0]:+.1f}, {line['ci'][1]:+.1f}]"


def table(name: str) -> str:
    """Probes down, arms or moments across; where there is an editor beside, the difference to it too."""
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    lines = {(line["measured_at"], line["kind"]): line for line in found["figures"]}
    differences = {(d["arm"], d["kind"]): d for d in found.get("difference_to_editor", ())}
    arms = list(dict.fromkeys(measured_at for measured_at, _ in lines))
    rows = [["", "before", *(arm.replace("_", " ") for arm in arms)], ["---"] * (len(arms) + 2)]
    for kind, title in ROWS.items():
        own = [lines.get((arm, kind)) for arm in arms]
        if all(own):
            before = next(line for line in own if line)["before"]
            cells = [
                cell(line) + gain(differences.get((arm, kind))) for arm, line in zip(arms, own, strict=True) if line
            ]
            rows.append([title, "" if before is None else f"{before:.1f}", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        print(f"\n{wanted}\n\n{table(wanted)}")
