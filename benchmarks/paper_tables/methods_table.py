"""Markdown tables of the comparison of all methods, and how their ranks differ by what is counted.

    kedit compare slurm/sweeps/methods_smollm2.yaml --metrics methods --out runs/methods
    python benchmarks/paper_tables/methods_table.py runs/methods/compare.csv  # without a file: the committed figures

One table for each data set and regime, in the order of the score (PAC's, of tokens, where the neighbours have no rival
answer); then the ranks by score and by `wild` among the methods that have both, and Kendall's tau of the two orders.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from kedit.report.ranks import CLASSIC, kendall, places_of, swapped_pairs
from kedit.sweeps.arms import OF_EDITOR

FILE = Path(__file__).resolve().parents[1] / "results" / "methods_smollm2.csv"
SCORES, WILD = [name for name in CLASSIC if name.startswith("score/")], "efficacy/wild"
PERCENT = {
    "efficacy": "efficacy/success", "generality": "generality/success", "locality": "locality/success",
    "exact": "efficacy/exact", "exact, paraphrases": "generality/exact", "neighbours as before": "locality/unchanged",
}  # fmt: skip
COSTS = {  # heading -> measure, decimals
    "CPU s": ("cpu_seconds", 2),
    "peak MB": ("peak_memory", 0),
    "delta KB": ("delta_bytes", 0),
    "perplexity": ("perplexity", 1),
}

Arm = dict[str, dict[str, str]]  # measure -> its line


def read(file: Path) -> dict[tuple[str, str], dict[str, Arm]]:
    """(data, regime) -> arm -> measure -> line; what an editor alone would have done is left out."""
    found: dict[tuple[str, str], dict[str, Arm]] = {}
    with file.open(newline="") as lines:
        for line in csv.DictReader(lines):
            if not line["arm"].endswith(OF_EDITOR):
                arms = found.setdefault((line["data"], line["regime"]), {})
                arms.setdefault(line["arm"], {})[line["measure"]] = line
    return found


def number(arm: Arm, measure: str, digits: int = 1) -> str:
    """A mean, or a dash where it was not measured."""
    text = arm.get(measure, {}).get("mean", "")
    if not text:
        return "-"
    value = float(text)
    return f"{value:.1e}" if abs(value) >= 1e6 else f"{value:,.{digits}f}"


def with_interval(arm: Arm, measure: str) -> str:
    """A mean and its 95 % interval."""
    line = arm.get(measure, {})
    if not line.get("ci_low"):
        return number(arm, measure)
    return f"{number(arm, measure)} [{float(line['ci_low']):.0f}, {float(line['ci_high']):.0f}]"


def named(arm: str, regime: str) -> str:
    """`memit_smollm2 sequential memory` -> `memit memory`."""
    return " ".join(word for word in arm.replace("_smollm2", "").split() if word != regime)


def score_of(arms: Mapping[str, Arm]) -> str:
    """The first of the scores that all arms have."""
    return next(score for score in SCORES if all(score in arm for arm in arms.values()))


def table(arms: Mapping[str, Arm], regime: str) -> list[str]:
    """The lines of a table, without columns that nothing was measured for."""
    score = score_of(arms)
    percent = {head: measure for head, measure in PERCENT.items() if any(measure in arm for arm in arms.values())}
    heads = ["method", "score", "wild", *percent, *COSTS]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    order = sorted(arms, key=lambda name: -float(arms[name][score]["mean"]))
    unedited = next(iter(arms.values()))
    before = [unedited[m]["unedited"] if m in unedited else "" for m in (score, WILD, *percent.values())]
    cells = [f"{float(text):.1f}" if text else "-" for text in before]
    lines.append("| " + " | ".join(["*unedited*", *cells, *["-"] * len(COSTS)]) + " |")
    for name in order:
        arm = arms[name]
        costs = [number(arm, measure, digits) for measure, digits in COSTS.values()]
        row = [named(name, regime), with_interval(arm, score), with_interval(arm, WILD)]
        row += [number(arm, measure) for measure in percent.values()]
        lines.append("| " + " | ".join([*row, *costs]) + " |")
    return lines


def ranks(arms: Mapping[str, Arm]) -> str:
    """How the order by score and that by `wild` differ, counted as `kedit report` counts."""
    score = score_of(arms)
    both = [arm for arm in arms.values() if WILD in arm]
    values = np.array([[float(arm[measure]["mean"]) for measure in (score, WILD)] for arm in both])  # [arms, 2]
    places = places_of(values)
    moved, n = int((places[:, 0] != places[:, 1]).sum()), len(both)
    tau, swapped = kendall(*values.T), swapped_pairs(*values.T)
    said = "" if tau is None else f", Kendall's tau-b {tau:.2f}"
    return f"{moved} of {n} change rank, {swapped} of {n * (n - 1) // 2} pairs swap{said}"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=FILE, help="compare.csv of kedit compare --out")
    for (data, regime), arms in read(parser.parse_args().file).items():
        print(f"### {data}, {regime}: {len(arms)} arms\n")
        print("\n".join(table(arms, regime)))
        print(f"\nBy score and by `wild`: {ranks(arms)}.\n")


if __name__ == "__main__":
    main()
