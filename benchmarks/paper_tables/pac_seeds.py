"""Arms of pac_table.py that were run with several seeds: their means, and how far an arm is ahead of the others.

    python benchmarks/paper_tables/pac_seeds.py --rows runs/pac_zsre_test.default_seed?.jsonl \\
        runs/pac_zsre_test.lambda0_seed?.jsonl --against default --save pac_zsre_seeds

Takes the row files that pac_table.py leaves, NAME.ARM_seedN.jsonl, all of the same records. A record's value is its
mean over the seeds; intervals are over records. A difference is that of the seeds which both arms have, paired by
record. How much the seeds themselves differ is told by their single values, beside the mean. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that it runs as a file, kedit installed or not

from benchmarks.common import save
from kedit.results.intervals import Floats, percentile_interval, resampled_means
from kedit.results.summary import TITLES, TOKEN_COLUMNS, SummaryAccumulator

MEASURES = tuple(TITLES[kind] for kind, _ in TOKEN_COLUMNS)
"""Efficacy, generality, locality; the score is their mean."""


def values_of(path: Path) -> dict[str, Floats]:
    """Record -> its three measures in percent, NaN where it has no probe of a kind."""
    board = SummaryAccumulator()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        board.add(row)
    columns = [board.means(*column) for column in TOKEN_COLUMNS]
    cases = (row["case_id"] for row in rows)
    return {case: np.array([100 * column.get(case, np.nan) for column in columns]) for case in cases}


def read(paths: Sequence[Path]) -> dict[str, dict[int, Floats]]:
    """Arm -> seed -> `[n, 3]`, the records in one order for all.

    Raises:
        SystemExit: A file's name has no arm and seed, or the files are not of the same records; in one line.
    """
    arms: dict[str, dict[int, Floats]] = {}
    cases: list[str] | None = None
    for path in paths:
        match = re.fullmatch(r"[^.]+\.(.+)_seed(\d+)\.jsonl", path.name)
        if match is None:
            raise SystemExit(f"--rows: {path.name} is not called NAME.ARM_seedN.jsonl")
        values = values_of(path)
        cases = list(values) if cases is None else cases
        if set(values) != set(cases):
            raise SystemExit(f"--rows: {path.name} is of other records than {paths[0].name}")
        arms.setdefault(match[1], {})[int(match[2])] = np.stack([values[case] for case in cases])
    return {arm: dict(sorted(seeds.items())) for arm, seeds in arms.items()}


def scored(means: Floats) -> Floats:
    """`[..., 3]` with the score as a fourth."""
    return np.concatenate([means, means.mean(-1, keepdims=True)], -1)


def compare(arms: Mapping[str, Mapping[int, Floats]], against: str) -> dict[str, Any]:
    """Every arm's means over seeds, and what `against` has more.

    Returns:
        Arm -> its `seeds`, `figures` (measure -> `mean`, `ci` over records, `per_seed`), and `ahead`, the same of the
        differences to `against`, over the `seeds` that both have.

    Raises:
        SystemExit: They have none in common; in one line.
    """
    result: dict[str, Any] = {}
    for arm, seeds in arms.items():
        shared = [seed for seed in seeds if seed in arms[against]]
        if not shared:
            raise SystemExit(f"--rows: {arm} and {against} have no seed in common")
        own, others = ([arms[name][seed] for seed in shared] for name in (arm, against))
        both = np.concatenate([np.mean(own, axis=0), np.mean(others, axis=0)], 1)  # [n, 6]
        ahead = [scored(np.nanmean(y, 0)) - scored(np.nanmean(x, 0)) for x, y in zip(own, others, strict=True)]
        values = list(seeds.values())
        mean = np.mean(values, axis=0)
        result[arm] = {
            "seeds": list(seeds),
            "figures": _cells(
                scored(np.nanmean(mean, 0)),
                scored(resampled_means(mean)),
                [scored(np.nanmean(one, 0)) for one in values],
            ),
            "ahead": _cells(_difference(np.nanmean(both, 0)), _difference(resampled_means(both)), ahead)
            | {"seeds": shared},
        }
    return result


def _difference(means: Floats) -> Floats:
    """`[..., 3 + 3]`: what the second three have more than the first, with the score."""
    first, second = np.split(means, 2, axis=-1)
    return scored(second) - scored(first)


def _cells(point: Floats, drawn: Floats, single: Sequence[Floats]) -> dict[str, Any]:
    return {
        name: {
            "mean": round(float(point[i]), 4),
            "ci": [round(end, 4) for end in percentile_interval(drawn[:, i])],
            "per_seed": [round(float(one[i]), 4) for one in single],
        }
        for i, name in enumerate((*MEASURES, "score"))
    }


def markdown(found: Mapping[str, Any], against: str) -> str:
    """A line for every arm."""
    names = (*MEASURES, "score")
    lines = [f"| arm | {' | '.join(names)} | scores by seed | {against} ahead by | by seed |", "| --- " * 8 + "|"]
    for arm, own in found.items():
        figures, ahead = own["figures"], own["ahead"]["score"]
        low, high = figures["score"]["ci"]
        cells = [f"{figures[name]['mean']:.1f}" for name in MEASURES]
        cells += [f"{figures['score']['mean']:.1f} [{low:.1f}, {high:.1f}]"]
        cells += [", ".join(f"{one:.1f}" for one in figures["score"]["per_seed"])]
        if arm == against:
            cells += ["", ""]
        else:
            cells += [f"{ahead['mean']:+.1f} [{ahead['ci'][0]:+.1f}, {ahead['ci'][1]:+.1f}]"]
            cells += [", ".join(f"{one:+.1f}" for one in ahead["per_seed"])]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and save its figures."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", nargs="+", type=Path, required=True, help="files NAME.ARM_seedN.jsonl")
    options.add_argument("--against", default="default", help="the arm that the others are compared with")
    options.add_argument("--save", help="name of the figures under benchmarks/results")
    a = options.parse_args()
    arms = read(a.rows)
    if a.against not in arms:
        raise SystemExit(f"--against: there are no rows of {a.against}, only of {', '.join(arms)}")
    found = compare(arms, a.against)
    print(markdown(found, a.against))
    if a.save:
        records = len(next(iter(next(iter(arms.values())).values())))
        save(a.save, {"records": records, "against": a.against, "arms": found})


if __name__ == "__main__":
    main()
