"""STEAM's two ablations as figures: what the strength of the alignment, or its layers, cost and gain.

    python benchmarks/paper_tables/steam_figures.py --results benchmarks/results/steam_sweep_counterfact.json \\
        --arms rome auto_r0.03 auto auto_r0.3 auto_r1 --x align.ratio --out docs/figures/steam_lambda
    python benchmarks/paper_tables/steam_figures.py --results benchmarks/results/steam_sweep_counterfact.json \\
        --arms rome early mid auto --x aligned_layers --out docs/figures/steam_layers

Draws arms of a result file (benchmarks/results/steam_*.json) in the order given, each at the value that its `method`
has of the option. Above: the accuracies. Below: the cosine of the edited state to the anchor of its object over the
aligned layers, beside that of the unedited model and of the editor alone. Writes OUT.png and, with the same numbers,
OUT.csv. Needs no torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.paper_tables.sweep_figure import draw, finished, options, panels, read, write

ACCURACIES = {
    "efficacy": "rewrite/exact",
    "paraphrases, exact": "paraphrase/exact",
    "paraphrases, success": "paraphrase/success",
    "neighbours unchanged": "neighborhood/unchanged",
}
COSINES = {"here": "this_arm", "editor alone": "first_arm", "unedited": "unedited"}
AXES = {
    "align.ratio": "strength: |gradient of λ·alignment| / |gradient of NLL| in an edit's first step (align.ratio)",
    "aligned_layers": "aligned layers",
}
STYLES: Mapping[str, Mapping[str, Any]] = {
    "efficacy": {"color": "#222222", "marker": "D"},
    "paraphrases, exact": {"color": "#b8530c", "marker": "s"},
    "paraphrases, success": {"color": "#d9a521", "marker": "v"},
    "neighbours unchanged": {"color": "#2a8c4a", "marker": "^"},
    "here": {"color": "#0072b2", "marker": "s", "linewidth": 2.2},
    "editor alone": {"color": "#d55e00", "marker": "^"},
    "unedited": {"color": "#666666", "marker": "o", "linestyle": (0, (4, 2))},
}


def place(arm: Mapping[str, Any], x: str) -> str:
    """Where an arm stands on x, as written there.

    Raises:
        SystemExit: Its method has no such option; in one line.
    """
    if "editor" not in arm["method"]:
        return "editor\nalone"
    own = dict(options(arm["method"]))
    if x not in own:
        raise SystemExit(f"--x: the method has no {x}; it has {', '.join(own)}")
    value = own[x]
    if isinstance(value, list):
        return f"{value[0]} to {value[-1]}" if value == list(range(value[0], value[-1] + 1)) else str(value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def lines(found: Mapping[str, Any], names: Sequence[str], x: str) -> list[dict[str, Any]]:
    """A line of the CSV for each arm and measure: percent, and cosines.

    Raises:
        SystemExit: An arm is not in the file, or two stand at one place; in one line.
    """
    rows, places = [], dict[str, str]()
    for name in names:
        if name not in found["arms"]:
            raise SystemExit(f"--arms: {name} is not in the file, which has {', '.join(found['arms'])}")
        arm = found["arms"][name]
        where = place(arm, x)
        if places.setdefault(where, name) != name:
            raise SystemExit(f"--x: the arms {places[where]} and {name} have the same {x}")
        about = {"arm": name, "x": where}
        for measure, figure in ACCURACIES.items():
            cell = arm["figures"][figure]
            low, high = cell["ci"] or (None, None)
            rows.append(about | _cell(measure, cell["before"], cell["after"], low, high))
        cosine = arm["compared_with_first"].get("cosine")
        if cosine is not None:
            rows += [about | _cell(measure, None, cosine[key], None, None) for measure, key in COSINES.items()]
    return rows


def _cell(measure: str, before: float | None, after: float, low: float | None, high: float | None) -> dict[str, Any]:
    return {"measure": measure, "before": before, "after": after, "ci_low": low, "ci_high": high}


def sweep_figure(rows: Sequence[Mapping[str, Any]], x: str, title: str, caption: str) -> Any:
    """The two panels."""
    figure, (above, below) = panels(2)
    places = list(dict.fromkeys(row["x"] for row in rows))
    draw(above, places, list(ACCURACIES), rows, STYLES)
    draw(below, places, list(COSINES), rows, STYLES)
    above.set_ylim(0, 102)
    above.set_ylabel("percent, mean over records")
    below.set_ylabel("cosine to the anchor")
    below.set_xlabel(AXES.get(x, x))
    return finished(figure, title, caption)


def words(found: Mapping[str, Any], names: Sequence[str], x: str) -> tuple[str, str]:
    """Title and caption."""
    method = found["arms"][names[-1]]["method"]
    about = f"{len(found['records'])} records of {found['data']}, {method['regime']} regime, seed {method['seed']}"
    title = f"{method['method']} on {method['editor']}, {method['model']}, by {x}\n{about}"
    return title, (
        "Bars: 95 % bootstrap intervals over records; they say nothing of other seeds.\n"
        "Exact, efficacy: every answer token is the argmax; success: the new object is likelier than the old one.\n"
        "Cosines: mean over the aligned layers of each arm, so that unedited and editor alone move with the layers."
    )


def main() -> None:
    """Read, choose, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="benchmarks/results/steam_*.json")
    parser.add_argument("--arms", nargs="+", required=True, help="names of arms, in the order on x")
    parser.add_argument("--x", required=True, help="the option on x, e.g. align.ratio or aligned_layers")
    parser.add_argument("--out", type=Path, required=True, help="the files without .png and .csv")
    a = parser.parse_args()
    found = read(a.results, "benchmarks/results/steam_*.json")
    rows = lines(found, a.arms, a.x)
    for path in write(rows, sweep_figure(rows, a.x, *words(found, a.arms, a.x)), a.out):
        print(path)


if __name__ == "__main__":
    main()
