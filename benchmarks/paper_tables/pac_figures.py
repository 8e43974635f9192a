"""PAC's figures 5 and 6: what an edit set costs and gains by the number of nodes |T+|, or by lambda.

    python benchmarks/paper_tables/pac_figures.py --results benchmarks/results/pac_zsre_test.json \\
        --arms-prefix nodes_ --x trace.nodes --out docs/figures/pac_nodes
    python benchmarks/paper_tables/pac_figures.py --results benchmarks/results/pac_zsre_test.json \\
        --arms-prefix lambda_ --x contrast.weight --out docs/figures/pac_lambda

Draws the arms of a result file (benchmarks/results/pac_*.json) whose names begin with the prefix; where they lie is
taken from the option in their `method`, not from their names. Writes OUT.png and, with the same numbers, OUT.csv. Needs
no torch. For the arms of a sweep there is `kedit compare`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.paper_tables.sweep_figure import draw, finished, options, panels, read, write

LINES = (
    ("efficacy", "rewrite/token_accuracy"),
    ("generality", "paraphrase/token_accuracy"),
    ("locality", "neighborhood/unchanged_tokens"),
    ("score", "score/tokens_arithmetic"),
)
"""Name, and figure in the result files."""

STYLES: Mapping[str, Mapping[str, Any]] = {
    "efficacy": {"color": "#1f4e9c", "marker": "o"},
    "generality": {"color": "#b8530c", "marker": "s"},
    "locality": {"color": "#2a8c4a", "marker": "^"},
    "score": {"color": "#222222", "marker": "D", "linewidth": 2.4},
}

AXES = {
    "trace.nodes": "|T+|: nodes trained in every matrix (trace.nodes)",
    "contrast.weight": "λ: weight of the contrastive term (contrast.weight)",
}
Arms = list[tuple[float, str, Mapping[str, Any]]]  # ascending by the value on x


def chosen(found: Mapping[str, Any], prefix: str, x: str) -> Arms:
    """The arms of a sweep.

    Raises:
        SystemExit: There are fewer than two, one lacks the option or a figure, or two have the same value; in one line.
    """
    names = [name for name in found["arms"] if name.startswith(prefix)]
    if len(names) < 2:
        have = ", ".join(found["arms"]) or "none at all"
        raise SystemExit(f"--arms-prefix: a figure takes two arms named {prefix}... or more; the file has {have}")
    arms: dict[float, str] = {}
    for name in names:
        arm = found["arms"][name]
        value = dict(options(arm["method"])).get(x)
        if not isinstance(value, int | float):
            raise SystemExit(f"--x: {x} is not a number of the method of arm {name}")
        if value in arms:
            raise SystemExit(f"--x: the arms {arms[value]} and {name} have the same {x}, {value:g}")
        missing = [figure for _, figure in LINES if figure not in arm["figures"]]
        if missing:
            raise SystemExit(f"--results: arm {name} has no {missing[0]}")
        arms[value] = name
    return [(value, arms[value], found["arms"][arms[value]]) for value in sorted(arms)]


def differences(arms: Arms, x: str) -> list[str]:
    """What the arms of a sweep do not have in common besides `x`: a figure should say so."""
    every = [dict(options(arm["method"])) | {"edit_batch": arm["edit_batch"]} for _, _, arm in arms]
    names = dict.fromkeys(name for own in every for name in own)
    return [name for name in names if name != x and any(own.get(name) != every[0].get(name) for own in every)]


def lines(arms: Arms) -> list[dict[str, Any]]:
    """A line of the CSV for each arm and measure, in percent."""
    found = []
    for value, name, arm in arms:
        for measure, figure in LINES:
            cell = arm["figures"][figure]
            low, high = cell["ci"] or (None, None)
            where = {"arm": name, "x": value, "measure": measure, "before": cell["before"]}
            found.append(where | {"after": cell["after"], "ci_low": low, "ci_high": high})
    return found


def sweep_figure(rows: Sequence[Mapping[str, Any]], x: str, title: str, caption: str) -> Any:
    """A line with error bars for each measure; the values on x stand at even distances, as 0 fits no log scale.

    Args:
        rows: What `lines` gives.
        x: The option on x.
        title: Above the figure.
        caption: Below it.
    """
    values = list(dict.fromkeys(row["x"] for row in rows))
    figure, (panel,) = panels(1)
    draw(panel, [f"{value:g}" for value in values], list(STYLES), rows, STYLES)
    panel.set_ylim(0, 102)
    panel.set_xlabel(AXES.get(x, x))
    panel.set_ylabel("percent, mean over records")
    return finished(figure, title, caption)


def words(found: Mapping[str, Any], arms: Arms, x: str) -> tuple[str, str]:
    """Title and caption."""
    method = arms[0][2]["method"]
    title = (
        f"{method['method']} on {method['model']} by {x}\n"
        f"{found['records']} records of {found['data']}, {method['regime']} regime, "
        f"edit batches of {arms[0][2]['edit_batch']}, seed {method['seed']}"
    )
    caption = (
        "Bars: 95 % bootstrap intervals over records; they say nothing of other seeds.\n"
        "Efficacy, generality: teacher-forced token accuracy; locality: agreement with the unedited argmax;\n"
        "score: their arithmetic mean. Measured after the last edit. Values on x are evenly spaced."
    )
    other = differences(arms, x)
    return title, caption + (f"\nThe arms differ also in {', '.join(other)}." if other else "")


def main() -> None:
    """Read, choose, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="benchmarks/results/pac_*.json")
    parser.add_argument("--arms-prefix", required=True, help="what the names of the arms begin with, e.g. nodes_")
    parser.add_argument("--x", required=True, help="the option on x, e.g. trace.nodes or contrast.weight")
    parser.add_argument("--out", type=Path, required=True, help="the files without .png and .csv")
    a = parser.parse_args()
    found = read(a.results, "benchmarks/results/pac_*.json")
    arms = chosen(found, a.arms_prefix, a.x)
    rows = lines(arms)
    for path in write(rows, sweep_figure(rows, a.x, *words(found, arms, a.x)), a.out):
        print(path)


if __name__ == "__main__":
    main()
