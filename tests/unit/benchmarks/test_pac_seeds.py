"""Arms of PAC's table over several seeds: the benchmark script against sums made by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.config_files import ROOT

ARMS = {"default": (0, 1, 2), "full_lr_1.4e-3": (0, 2), "random": (1,)}
SCRIPTS = ROOT / "benchmarks" / "paper_tables"
RECORDS = 7
OTHERS = {"success": None, "exact": None, "nll_answer": 1.0, "nll_rival": None}
"""What else a saved score has."""


def row(case: int, random: np.random.Generator) -> dict[str, Any]:
    """A record with a paraphrase, or with two, and a neighbour that record 0 lacks."""

    def probe(kind: str) -> dict[str, Any]:
        before, after = (random.integers(0, 3, 4).tolist() for _ in range(2))
        score = {"token_accuracy": float(random.random())} | OTHERS
        return {"kind": kind, "before": {"top1": before} | score, "after": {"top1": after} | score}

    kinds = ["rewrite", *["paraphrase"] * (1 + case % 2), *["neighborhood"] * (case > 0)]
    return {"case_id": str(case), "probes": [probe(kind) for kind in kinds]}


@pytest.fixture
def files(tmp_path: Path) -> dict[tuple[str, int], Path]:
    random = np.random.default_rng(0)
    found = {}
    for arm, seeds in ARMS.items():
        for seed in seeds:
            rows = [row(case, random) for case in range(RECORDS)]
            random.shuffle(rows)  # type: ignore[arg-type]
            found[arm, seed] = tmp_path / f"pac_test.{arm}_seed{seed}.jsonl"
            found[arm, seed].write_text("".join(json.dumps(one) + "\n" for one in rows))
    return found


def by_hand(path: Path) -> list[float]:
    """Efficacy, generality, locality, score of a file in percent: means over records of means over probes."""
    columns: dict[str, list[float]] = {"rewrite": [], "paraphrase": [], "neighborhood": []}
    for line in path.read_text().splitlines():
        for kind, column in columns.items():
            shares = []
            for probe in json.loads(line)["probes"]:
                before, after = probe["before"]["top1"], probe["after"]["top1"]
                same = sum(b == a for b, a in zip(before, after, strict=True)) / 4
                shares += [same if kind == "neighborhood" else probe["after"]["token_accuracy"]] * (
                    probe["kind"] == kind
                )
            if shares:
                column.append(100 * sum(shares) / len(shares))
    means = [sum(column) / len(column) for column in columns.values()]
    return [*means, sum(means) / 3]


def run(paths: list[Path], *more: str) -> subprocess.CompletedProcess[str]:
    words = [
        sys.executable,
        str(SCRIPTS / "pac_seeds.py"),
        "--rows",
        *map(str, paths),
        *more,
    ]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)


def test_means_over_seeds_and_how_far_an_arm_is_ahead(files: dict[tuple[str, int], Path]) -> None:
    done = run(list(files.values()))
    assert done.returncode == 0, done.stderr
    lines = {
        cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in (x.split("|") for x in done.stdout.splitlines())
    }
    singles = {key: by_hand(path) for key, path in files.items()}
    for arm, seeds in ARMS.items():
        own = np.array([singles[arm, seed] for seed in seeds])
        cells = lines[arm]
        assert cells[:3] == [f"{mean:.1f}" for mean in own.mean(0)[:3]]
        point, low, high = (float(word.strip("[],")) for word in cells[3].split())
        assert f"{point:.1f}" == f"{own.mean(0)[3]:.1f}"
        assert low < point < high
        assert cells[4] == ", ".join(f"{score:.1f}" for score in own[:, 3])
        ahead = [singles["default", seed][3] - singles[arm, seed][3] for seed in seeds]
        if arm == "default":
            assert cells[5:] == ["", ""]
            continue
        assert cells[6] == ", ".join(f"{one:+.1f}" for one in ahead)
        point, low, high = (float(word.strip("[],")) for word in cells[5].split())
        assert f"{point:+.1f}" == f"{np.mean(ahead):+.1f}"
        assert low < point < high


def test_an_arm_is_level_with_itself(files: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    """Intervals are paired: the same rows under another name differ by nothing, in every resample."""
    twins = []
    for seed in ARMS["default"]:
        twins.append(tmp_path / f"pac_test.twin_seed{seed}.jsonl")
        twins[-1].write_text(files["default", seed].read_text())
    done = run([*(files["default", seed] for seed in ARMS["default"]), *twins])
    assert "| +0.0 [+0.0, +0.0] | +0.0, +0.0, +0.0 |" in done.stdout.replace("-0.0", "+0.0")


@pytest.mark.parametrize(
    ("name", "records", "against", "error"),
    [
        ("pac_test.default.jsonl", RECORDS, "default", "--rows: pac_test.default.jsonl is not called NAME.ARM_seedN"),
        ("pac_test.x_seed0.jsonl", RECORDS - 1, "default", "--rows: pac_test.x_seed0.jsonl is of other records than"),
        ("pac_test.x_seed0.jsonl", RECORDS, "edit", "--against: there are no rows of edit, only of default, x"),
    ],
)
def test_a_mistake_is_one_line(
    files: dict[tuple[str, int], Path], tmp_path: Path, name: str, records: int, against: str, error: str
) -> None:
    lines = files["random", 1].read_text().splitlines()[:records]
    other = tmp_path / name
    other.write_text("".join(line + "\n" for line in lines))
    done = run([files["default", 0], other], "--against", against)
    assert done.returncode != 0
    assert done.stderr.startswith(error)
    assert len(done.stderr.splitlines()) == 1
