"""`kedit compare`: sums made by hand, seeds, pairs, what may stand side by side, and mistakes in a line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from kedit.cli import main
from kedit.results.intervals import paired
from kedit.sweeps.arms import of_folders
from kedit.sweeps.compare import Comparison, compare
from kedit.sweeps.compare_tables import as_markdown, titled
from kedit.sweeps.measures import measures_of
from kedit.sweeps.tradeoff_figure import axes, tradeoff_figure
from tests.support.comparison_cases import by_hand, random_row, refused, write_run

ARMS = {"default": (0, 1, 2), "full_lr_1.4e-3": (0, 2), "random": (1,)}
RECORDS = 7
TOKENS = (
    "efficacy/token_accuracy",
    "generality/token_accuracy",
    "locality/unchanged_tokens",
    "score/tokens_arithmetic",
)
Rows = dict[tuple[str, int], list[dict[str, Any]]]


@pytest.fixture
def rows() -> Rows:
    """Of every arm and seed; the records in an order of their own."""
    random = np.random.default_rng(0)
    found: Rows = {}
    for arm, seeds in ARMS.items():
        for seed in seeds:
            found[arm, seed] = [random_row(case, random) for case in range(RECORDS)]
            random.shuffle(found[arm, seed])  # type: ignore[arg-type]
    return found


@pytest.fixture
def folders(rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run of each."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    return [str(write_run(Path(f"runs/{arm}_seed{seed}"), own, seed)) for (arm, seed), own in rows.items()]


def comparison(folders: list[str], against: str | None = None, metrics: str = "tokens", **options: Any) -> Comparison:
    seeds = options.pop("seeds", True)
    runs = of_folders([Path(folder) for folder in folders], seeds)
    return compare(runs, measures_of(metrics), against, **options)


def test_means_over_seeds_and_how_far_an_arm_is_ahead(rows: Rows, folders: list[str]) -> None:
    """Every mean, every seed and every difference is that of sums by hand."""
    (table,) = comparison(folders, "default", paired=True).tables
    singles = {key: by_hand(own) for key, own in rows.items()}
    assert [arm.name for arm in table.arms] == list(ARMS)
    for arm in table.arms:
        seeds = ARMS[arm.name]
        own = np.array([singles[arm.name, seed] for seed in seeds])
        assert arm.seeds == tuple(f"seed{seed}" for seed in seeds)
        for nth, name in enumerate(TOKENS):
            cell = arm.cells[name]
            assert cell.mean == pytest.approx(own.mean(0)[nth])
            assert cell.per_seed == pytest.approx(own[:, nth])
            assert cell.spread == (None if len(seeds) == 1 else pytest.approx(own[:, nth].std(ddof=1)))
            assert cell.ci[0] < cell.mean < cell.ci[1]
        if arm.name == "default":
            assert arm.differences == {}
            continue
        assert arm.shared_seeds == arm.seeds
        for nth, name in enumerate(TOKENS):
            ahead = [singles[arm.name, seed][nth] - singles["default", seed][nth] for seed in seeds]
            change = arm.differences[name]
            assert change.per_seed == pytest.approx(ahead)
            assert change.mean == pytest.approx(np.mean(ahead))
            assert change.ci[0] < change.mean < change.ci[1]
            assert change.n == (RECORDS - 1 if "locality" in name else RECORDS)


def test_one_seed_is_the_runs_own_summary(rows: Rows, folders: list[str]) -> None:
    """Without --seeds every run is an arm, with the very numbers of its summary.json."""
    (table,) = comparison(folders, metrics="main,tokens", seeds=False).tables
    kinds = {"efficacy": "rewrite", "generality": "paraphrase", "locality": "neighborhood"}
    assert [arm.name for arm in table.arms] == [Path(folder).name for folder in folders]
    seen = 0
    for arm, folder in zip(table.arms, folders, strict=True):
        results = json.loads((Path(folder) / "summary.json").read_text())["results"]["edit"]
        for name, cell in arm.cells.items():
            if name == "steps":
                continue
            title, _, metric = name.partition("/")
            theirs = results[kinds.get(title, title)][metric]
            assert (round(cell.mean, 4), *(round(end, 4) for end in cell.ci)) == (theirs["after"], *theirs["ci"])
            seen += 1
    assert seen == 11 * len(folders)
    steps = [row["edit"]["steps"] for row in rows["random", 1]]
    assert table.arms[-1].cells["steps"].mean == pytest.approx(np.mean(steps))
    assert table.unedited["efficacy/success"] > 0
    assert "locality/unchanged" not in table.unedited


def test_an_arm_is_level_with_itself(rows: Rows, folders: list[str]) -> None:
    """Intervals are paired: the same rows under another name differ by nothing, in every resample."""
    twins = [str(write_run(Path(f"runs/twin_seed{seed}"), rows["default", seed], seed)) for seed in ARMS["default"]]
    (table,) = comparison([*folders[:3], *twins], "default", paired=True).tables
    change = table.arms[1].differences["score/tokens_arithmetic"]
    assert (change.mean, change.ci, change.per_seed) == (0, (0, 0), (0, 0, 0))
    assert not change.off_zero
    text = as_markdown(comparison([*folders[:3], *twins], "default", paired=True))
    assert re.search(r"^\| twin \|.*\| \+0\.0 ± 0\.0 \[\+0\.0, \+0\.0\] \|", text, re.MULTILINE)
    (table,) = comparison([*folders[:3], *twins], "default").tables  # each resampled by itself
    low, high = table.arms[1].differences["score/tokens_arithmetic"].ci
    assert low < 0 < high


def test_a_paired_difference_is_that_of_the_records_in_both(rows: Rows, folders: list[str]) -> None:
    """A record that one arm lacks has no part in it; the interval is `kedit.results.intervals.paired`'s."""
    short = [row for row in rows["full_lr_1.4e-3", 0] if row["case_id"] != "3"]
    other = str(write_run(Path("runs/short"), short))
    (table,) = comparison([folders[0], other], "default_seed0", "efficacy/token_accuracy,score/success", seeds=False,
                          paired=True).tables  # fmt: skip
    change = table.arms[1].differences["efficacy/token_accuracy"]

    def accuracy(own: list[dict[str, Any]]) -> dict[str, float]:
        return {row["case_id"]: row["probes"][0]["after"]["token_accuracy"] for row in own}

    theirs, ours = accuracy(rows["default", 0]), accuracy(short)
    low, high = paired([theirs[case] for case in ours], list(ours.values()))
    assert change.n == RECORDS - 1
    assert change.mean == pytest.approx(100 * np.mean([ours[case] - theirs[case] for case in ours]))
    assert change.ci == pytest.approx((100 * low, 100 * high))


def test_an_interval_that_leaves_zero_out_is_marked(rows: Rows, folders: list[str]) -> None:
    better = json.loads(json.dumps(rows["random", 1]))
    for row in better:
        row["probes"][0]["after"]["token_accuracy"] = 1.0
    other = str(write_run(Path("runs/better"), better, 1))
    result = comparison([folders[-1], other], "random_seed1", "tokens", seeds=False, paired=True)
    change = result.tables[0].arms[1].differences
    assert change["efficacy/token_accuracy"].off_zero
    assert not change["generality/token_accuracy"].off_zero
    line = next(line for line in as_markdown(result).splitlines() if line.startswith("| better | +"))
    assert re.match(r"\| better \| \+\d+\.\d\\\* \[\+\d+\.\d, \+\d+\.\d\] \| \+0\.0 \[", line)


def test_only_what_was_measured_alike_stands_in_one_table(rows: Rows, folders: list[str]) -> None:
    """Another regime or other records make another table; the editor alone stands beside what was added to it."""
    random = np.random.default_rng(1)
    late = [random_row(case, random, "end") for case in range(RECORDS)]
    both = rows["random", 1] + [row | {"measured_at": "editor"} for row in rows["default", 0]]
    made = {
        "rep": write_run(Path("runs/rep"), both, method="REP", editor="ROME"),
        "a": write_run(Path("runs/a"), late, regime="sequential"),
        "b": write_run(Path("runs/b"), late, regime="sequential"),
        "other": write_run(Path("runs/other"), rows["random", 1], records="f" * 16),
    }
    result = comparison([folders[0], *map(str, made.values())], "rep/editor", paired=True)
    assert [[arm.name for arm in table.arms] for table in result.tables] == [
        ["default", "rep", "rep/editor"],
        ["a", "b"],
    ]
    assert [table.against for table in result.tables] == ["rep/editor", None]
    change = result.tables[0].arms[0].differences["score/tokens_arithmetic"]
    assert change.mean == pytest.approx(0)  # the same rows
    assert "rep/editor is not in the table of a, b: measured otherwise" in result.notes
    assert "alone, not compared: other on facts/test (7 records), regime single, measured_at edit" in result.notes


def test_every_measuring_point_has_a_table(rows: Rows, folders: list[str]) -> None:
    """Those of metrics.eval_at too, which the summary has not."""
    random = np.random.default_rng(1)
    late = [random_row(case, random, "end") for case in range(RECORDS)]
    later = [random_row(case, random, "at_5") for case in range(5)]
    curves = [write_run(Path(f"runs/curve_{name}"), late + later, regime="sequential") for name in "ab"]
    result = comparison(list(map(str, curves)), seeds=False)
    assert [titled(table).partition("sequential, ")[2] for table in result.tables] == [
        "measured after the last edit",
        "measured after 5 edits",
    ]
    assert result.tables[1].arms[0].cells["efficacy/exact"].n == 5


def test_files(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", *folders, "--seeds", "--paired", "--against", "default", "--out", "t/it"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    assert "Difference to default" in out
    assert sorted(path.name for path in Path("t/it").iterdir()) == ["compare.csv", "compare.md", "tradeoff.png"]
    text = Path("t/it/compare.md").read_text()
    assert text.startswith("# 6 runs: 3 arms compared\n\n## facts/test (7 records, 012345), regime single")
    assert "| random (1 seed) | " in text
    assert "![trade-off](tradeoff.png)" in text
    with Path("t/it/compare.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    (table,) = comparison(folders, "default", "main", paired=True).tables
    assert len(lines) == sum(len(arm.cells) for arm in table.arms)
    for line in lines:
        arm = next(arm for arm in table.arms if arm.name == line["arm"])
        cell, change = arm.cells[line["measure"]], arm.differences.get(line["measure"])
        assert [float(line[key]) for key in ("mean", "ci_low", "ci_high")] == [cell.mean, *cell.ci]
        assert tuple(map(float, line["per_seed"].split("; "))) == cell.per_seed
        if change is None:
            assert line["difference"] == ""
            continue
        assert [float(line[key]) for key in ("difference", "difference_ci_low", "difference_ci_high")] == [
            change.mean, *change.ci
        ]  # fmt: skip
        assert line["difference_excludes_zero"] == str(change.off_zero)
    main(["compare", *folders, "--format", "markdown", "--metrics", "efficacy/exact"])
    assert capsys.readouterr().out.splitlines()[4].count("|") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "edit"], "against: there is no arm edit; there are default_seed0, default_seed1, "),
        (["--against", "default"], "default has several seeds: --seeds puts them together"),
        (["--paired"], "paired: differences to which arm? Give --against ARM"),
        (["--metrics", "efficacy/bleu"], "metrics: there is no 'efficacy/bleu'; there are main, tokens, robust, "),
        (["--metrics", "portability/port_em"], "metrics: no arm has portability/port_em"),
        (["--metrics", ","], "metrics: expects main, tokens, robust, methods, or names such as"),
        (["--runs", "elsewhere"], "runs: it goes with a sweep file"),
        (["nowhere"], "nowhere: there is no such sweep file, nor folder of a sweep or of a run"),
        (["runs"], "runs is not the folder of a sweep or of a run: no sweep.json, no summary.json in it"),
    ],
)
def test_a_mistake_is_one_line(
    folders: list[str], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    refused(["compare", *folders, *words], message, capsys)


def test_runs_that_cannot_be_compared(rows: Rows, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(["compare", folders[0]], "one arm alone has results, default_seed0: a comparison takes two", capsys)
    refused(["compare", *folders[:3], "--seeds"], "one arm alone has results, default: a comparison takes", capsys)
    refused(["compare"], "what is to be compared? A sweep file, the folder of a sweep, or folders", capsys)
    unfinished = Path("runs/unfinished")
    unfinished.mkdir()
    (unfinished / "results.jsonl").touch()
    refused(["compare", folders[0], str(unfinished)], "runs/unfinished has no results yet: the run is not", capsys)
    bare = write_run(Path("runs/bare"), rows["random", 1])
    (bare / "results.jsonl").unlink()
    refused(["compare", folders[0], str(bare)], "runs/bare has no results.jsonl: a comparison goes record by", capsys)
    (bare / "summary.json").write_text("{")
    refused(["compare", folders[0], str(bare)], "runs/bare/summary.json is damaged or cannot be read", capsys)
    other = write_run(Path("runs/other"), rows["random", 1], regime="sequential")
    refused(["compare", folders[0], str(other)], "no two arms were measured alike: default_seed0, other", capsys)
    twice = write_run(Path("runs/default_seed_0"), rows["default", 0])
    refused(["compare", folders[0], str(twice), "--seeds"], "default has seed0 twice: runs/default_seed0 and", capsys)
    wrong = write_run(Path("runs/default_seed7"), rows["default", 0], 7, v_lr=0.3)
    words = ["compare", folders[0], str(wrong), "--seeds"]
    refused(words, "runs/default_seed0 and runs/default_seed7 are not one arm: they differ in v_lr", capsys)
    apart = write_run(Path("runs/apart"), [random_row(9, np.random.default_rng(0))])
    words = ["compare", folders[0], str(apart), "--paired", "--against", "default_seed0"]
    refused(words, "paired: apart and default_seed0 have no record in common, so nothing can be paired", capsys)
    words = ["compare", folders[4], folders[5], "--seeds", "--paired", "--against", "random"]
    refused(words, "paired: full_lr_1.4e-3 and random have no seed in common, so nothing can be paired", capsys)


def test_the_figure(folders: list[str]) -> None:
    """A point per arm with both its intervals, and no name upon another."""
    (table,) = comparison(folders, "default", "tokens").tables
    figure = tradeoff_figure(table, "a title that is much longer than the picture is wide " * 4)
    assert figure is not None
    panel: Any = figure.axes[0]
    points = {line.get_label(): line for line in panel.lines if not str(line.get_label()).startswith("_")}
    assert list(points) == ["default (compared with)", "full_lr_1.4e-3", "random"]
    for arm, line in zip(table.arms, points.values(), strict=True):
        x, y = arm.cells["locality/unchanged_tokens"], arm.cells["generality/token_accuracy"]
        assert np.array_equal(line.get_xydata(), [[x.mean, y.mean]])
        bars = [np.asarray(bar.get_xydata()).tolist() for bar in panel.lines]
        assert [[end, y.mean] for end in x.ci] in bars
        assert [[x.mean, end] for end in y.ci] in bars
    assert "locality, unchanged tokens (percent)" in panel.get_xlabel()
    assert "generality, token accuracy (percent)" in panel.get_ylabel()
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in panel.get_legend().get_texts()]
    assert not any(a.overlaps(b) for nth, a in enumerate(boxes) for b in boxes[:nth])
    assert all(figure.bbox.x1 >= box.x1 for box in boxes)
    assert axes(measures_of("main"))[0].name == "locality/success"  # type: ignore[index]
    assert axes(measures_of("generality/exact,main"))[0].name == "locality/unchanged"  # type: ignore[index]
    assert axes(measures_of("efficacy/exact,locality/unchanged")) is None
