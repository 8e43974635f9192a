"""STEAM's sweep figures: accuracies and cosines by strength or layers, out of a benchmark's result file."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.unit.analysis.test_path_importance import check_image

SCRIPTS = ROOT / "benchmarks" / "paper_tables"

FIGURES = {
    "efficacy": "rewrite/exact",
    "paraphrases, exact": "paraphrase/exact",
    "paraphrases, success": "paraphrase/success",
    "neighbours unchanged": "neighborhood/unchanged",
}


def arm(ratio: float | None, layers: list[int], shift: float) -> dict[str, Any]:
    """An arm as the result files have it; None: the editor alone."""
    figures = {
        figure: {"before": None if nth == 3 else 5.0, "after": 60 + 10 * nth + shift, "ci": [50 + 10 * nth, 90.0]}
        for nth, figure in enumerate(FIGURES.values())
    }
    about: dict[str, Any] = {"method": "ROME", "model": "tiny", "regime": "single", "seed": 3}
    if ratio is None:
        return {"method": about, "figures": figures, "compared_with_first": {}}
    about |= {"method": "STEAM", "editor": "ROME", "align": {"ratio": ratio}, "aligned_layers": layers}
    cosine = {"unedited": 0.9, "first_arm": 0.8, "this_arm": 0.85 + shift / 100, "n": 4}
    return {"method": about, "figures": figures, "compared_with_first": {"cosine": cosine}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    arms = {
        "strong": arm(1.0, [2, 3, 4], 3.0),
        "rome": arm(None, [], 0.0),
        "weak": arm(0.1, [2, 3, 4], 1.0),
        "apart": arm(0.1, [1, 4], 2.0),
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"records": ["a", "b", "c", "d"], "data": "facts.json", "arms": arms}))
    return path


def sweep(results: Path, arms: list[str], x: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(SCRIPTS / "steam_figures.py"),
        "--results",
        str(results),
    ]
    return subprocess.run(
        [*command, "--arms", *arms, "--x", x, "--out", str(out)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arms", "x", "places"),
    [
        (["rome", "weak", "strong"], "align.ratio", ["editor\nalone", "0.1", "1"]),
        (["rome", "strong", "apart"], "aligned_layers", ["editor\nalone", "2 to 4", "[1, 4]"]),
    ],
)
def test_a_sweep(arms: list[str], x: str, places: list[str], results: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "steam_0.1"
    done = sweep(results, arms, x, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{out}.png", f"{out}.csv"]
    check_image(Path(f"{out}.png"), 800, 700)
    with Path(f"{out}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(dict.fromkeys((line["arm"], line["x"]) for line in lines)) == list(zip(arms, places, strict=True))
    found = json.loads(results.read_text())["arms"]
    cosines = {"here": "this_arm", "editor alone": "first_arm", "unedited": "unedited"}
    assert len(lines) == 3 * len(FIGURES) + 2 * len(cosines)
    for line in lines:
        own = found[line["arm"]]
        if line["measure"] in cosines:
            assert float(line["after"]) == own["compared_with_first"]["cosine"][cosines[line["measure"]]]
        else:
            cell = own["figures"][FIGURES[line["measure"]]]
            assert [float(line[key]) for key in ("after", "ci_low", "ci_high")] == [cell["after"], *cell["ci"]]


@pytest.mark.parametrize(
    ("arms", "x", "message"),
    [
        (["rome", "none"], "align.ratio", "--arms: none is not in the file, which has strong, rome, weak, apart"),
        (["weak", "strong"], "align.weight", "--x: the method has no align.weight; it has method, model, "),
        (["weak", "apart"], "align.ratio", "--x: the arms weak and apart have the same align.ratio"),
    ],
)
def test_what_is_no_sweep_is_said_in_a_line(
    arms: list[str], x: str, message: str, results: Path, tmp_path: Path
) -> None:
    done = sweep(results, arms, x, tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
    assert not list(tmp_path.glob("out*"))
