"""Ranks by classic measures and by free answers, against sums by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kedit.report.ranks import Ranking, ranking
from kedit.sweeps.arms import of_folders
from kedit.sweeps.compare import Table, compare
from kedit.sweeps.measures import measures_of
from tests.support.report_cases import three_arms


def table_of(folders: list[str], names: str = "efficacy/success,efficacy/wild") -> Table:
    (table,) = compare(of_folders([Path(f) for f in folders], False), measures_of(names)).tables
    return table


def found(table: Table) -> Ranking:
    ranks = ranking(table, 500)
    assert ranks is not None
    return ranks


def shares(folders: list[str], name: str) -> np.ndarray:
    """`[arms, records]` of the edited prompt."""
    rows = [[json.loads(line) for line in (Path(f) / "results.jsonl").read_text().splitlines()] for f in folders]
    return np.array([[float(row["probes"][0]["after"][name]) for row in own] for own in rows])


def test_places_moves_and_agreement(tmp_path: Path) -> None:
    folders = three_arms(tmp_path, records=30, arms=6)
    ranks = found(table_of(folders))
    classic, wild = (shares(folders, name).mean(1) for name in ("success", "wild_match"))
    names = [Path(folder).name for folder in folders]
    for nth, name in enumerate(names):
        first, free = ranks.arms[name]
        assert first.value == pytest.approx(100 * classic[nth])
        assert first.place == 1 + sum(other > classic[nth] + 1e-9 for other in classic)
        assert free.place == 1 + sum(other > wild[nth] + 1e-9 for other in wild)
        assert free.moved == first.place - free.place
        assert first.tied == (sum(abs(other - classic[nth]) < 1e-9 for other in classic) > 1)
        assert free.ends[0] <= free.place <= free.ends[1]
    pairs = [(a, b) for a in range(6) for b in range(a)]
    signs = [(np.sign(classic[a] - classic[b]), np.sign(wild[a] - wild[b])) for a, b in pairs]
    assert ranks.pairs == 15
    assert ranks.swapped == (0, sum(x * y < 0 for x, y in signs))
    untied = [sum(sign[m] != 0 for sign in signs) for m in (0, 1)]
    tau = sum(x * y for x, y in signs) / np.sqrt(untied[0] * untied[1])
    assert ranks.agreement == (pytest.approx(1.0), pytest.approx(tau))
    assert [ranks.arms[name][0].place for name in ranks.arms] == sorted(ranks.arms[name][0].place for name in names)


def test_intervals_are_of_the_same_resampled_records(tmp_path: Path) -> None:
    """An arm that is ahead on every record is first in every resample; a naive bootstrap gives the same ends."""
    folders = three_arms(tmp_path, records=20)
    values = shares(folders, "wild_match")
    random, places = np.random.default_rng(0), []
    for _ in range(500):
        drawn = values[:, random.integers(0, 20, 20)].mean(1)
        places.append([1 + sum(other > own + 1e-9 for other in drawn) for own in drawn])
    low, high = np.percentile(places, [2.5, 97.5], axis=0, method="nearest")
    ranks = found(table_of(folders))
    for nth, folder in enumerate(folders):
        ends = ranks.arms[Path(folder).name][1].ends
        assert abs(ends[0] - low[nth]) <= 1
        assert abs(ends[1] - high[nth]) <= 1


def test_no_ranks_without_free_answers(tmp_path: Path) -> None:
    folders = three_arms(tmp_path)
    assert ranking(table_of(folders, "efficacy/success")) is None
    assert ranking(table_of(folders, "efficacy/wild")) is None
