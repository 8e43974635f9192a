"""PAC's figures: the importance of nodes by layer, out of a run; accuracy by a swept option, out of a result file."""

from __future__ import annotations

import csv
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kedit.callbacks import EditProgress
from kedit.cli import main
from kedit.pac import Profile
from kedit.pac.figure import COLUMNS, importance_figure

ROOT = Path(__file__).parent.parent
METHOD = {"method": "PAC", "model": "tiny", "scope": "batch", "seed": 3}
FACTS = [
    ("The capital of {} is", "France", "Rome", "Paris"),
    ("The capital of {} is", "Japan", "Cairo", "Tokyo"),
    ("{} plays", "Lionel Messi", "basketball", "football"),
    ("{} was founded by", "Microsoft", "Steve Jobs", "Bill Gates"),
]
Rows = list[dict[str, Any]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run of PAC in four edit batches; later words win."""
    data = tmp_path / "facts.jsonl"
    names = ("prompt", "subject", "target_new", "target_true")
    data.write_text("".join(json.dumps(dict(zip(names, fact, strict=True))) + "\n" for fact in FACTS))
    options = {
        "model": "PAC",
        "model.lm.name": tiny_folder("llama", n_layers=3),
        "model.regime": "sequential",
        "model.trace.nodes": 5,
        "model.train.passes": 2,
        "model.train.stop": "false",
        "data": "Records",
        "data.path": data,
        "data.batch_size": 1,
        "importance.enabled": "true",
        "results.resamples": 20,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": "cpu",
    }
    return ["fit", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def without(words: list[str], *options: str) -> list[str]:
    """The command without some of its options."""
    pairs = zip(words[1::2], words[2::2], strict=True)
    return ["fit", *(part for name, value in pairs if name not in options for part in (name, value))]


def read(path: Path) -> Rows:
    assert tuple(next(csv.reader(path.read_text().splitlines()))) == COLUMNS
    lines = csv.DictReader(path.read_text().splitlines())
    return [
        {"layer": int(line["layer"]), "kind": line["kind"], "rank": int(line["rank"]), "score": float(line["score"])}
        for line in lines
    ]


def check_image(path: Path, width: int, height: int) -> None:
    """A picture of that size at least, with ink of many colours on it."""
    image = imread(path)
    assert image.shape[0] > height
    assert image.shape[1] > width
    assert (image[..., :3].min(-1) < 0.9).mean() > 0.01
    assert len(np.unique(image.reshape(-1, image.shape[-1]), axis=0)) > 20


def test_a_run_writes_its_profile(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(EditProgress, "on_train_start", lambda self, trainer, module: seen.append(module))
    main([*words, "--model.trace.include_gate", "true"])
    folder = tmp_path / "runs" / "one"
    (module,) = seen
    assert module.profile.traces == len(FACTS)
    rows = read(folder / "importance.csv")
    assert rows == module.profile.rows()
    assert {(row["layer"], row["kind"]) for row in rows} == {
        (layer, kind) for layer in range(3) for kind in ("key", "value", "gate")
    }
    assert {row["rank"] for row in rows} == set(range(81))  # as many nodes as a matrix has, and their mean
    check_image(folder / "importance.png", 1200, 300)
    assert not list(folder.glob("*.partial"))


def made(kinds: tuple[str, ...], layers: int = 4, ranks: int = 30, offset: float = 1.0) -> Rows:
    """Scores that fall with the rank and differ by kind and layer."""
    return [
        {"layer": layer, "kind": kind, "rank": rank, "score": offset + (10 * place + layer) / max(rank, 0.5)}
        for place, kind in enumerate(kinds)
        for layer in range(layers)
        for rank in range(ranks + 1)
    ]


@pytest.mark.parametrize("kinds", [("key", "value"), ("key", "value", "gate")])
def test_the_panels(kinds: tuple[str, ...]) -> None:
    rows = made(kinds)
    method = METHOD | {"trace": {"nodes": 15, "score": "zscore"}}
    figure = importance_figure(rows[::-1], 2, method, {"name": "zsre/x", "records": 7})
    *maps, profile = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in maps] == [f"{kind}s: score by layer and rank" for kind in kinds]
    scores = {(row["kind"], row["layer"], row["rank"]): row["score"] for row in rows}
    for kind, panel in zip(kinds, maps, strict=True):
        values = np.asarray(panel.collections[0].get_array()).reshape(4, 30)
        assert values.tolist() == [[scores[kind, layer, rank] for rank in range(1, 31)] for layer in range(4)]
        assert panel.get_ylim()[0] < panel.get_ylim()[1]  # layer 0 at the bottom
    lines = {line.get_label(): line for line in profile.lines}
    assert list(lines) == [name for kind in kinds for name in (f"{kind}s", f"{kind}s, all nodes")]
    for kind in kinds:
        peaks = [np.mean([scores[kind, layer, rank] for rank in range(1, 16)]) for layer in range(4)]
        np.testing.assert_allclose(np.asarray(lines[f"{kind}s"].get_xdata(), float), peaks)
        means = [scores[kind, layer, 0] for layer in range(4)]
        assert np.asarray(lines[f"{kind}s, all nodes"].get_xdata()).tolist() == means
        assert lines[f"{kind}s, all nodes"].get_linestyle() == "--"
    title = figure.get_suptitle()
    for part in ("PAC on tiny", "7 records of zsre/x", "2 traces", "zscore", "seed 3"):
        assert part in title
    assert "not its size" in figure.get_supxlabel()


@pytest.mark.parametrize(("score", "offset"), [("signed_sum", -3.0), ("l2", 0.0)])
def test_scores_that_are_not_positive_or_no_z_scores(score: str, offset: float) -> None:
    """Negative and zero scores have no logarithm; the caution about z-scores is theirs alone."""
    method = METHOD | {"trace": {"nodes": 500, "score": score}}
    figure = importance_figure(made(("key", "value"), offset=offset), 1, method, {"name": "x", "records": 1})
    figure.draw_without_rendering()
    assert "not its size" not in figure.get_supxlabel()
    assert figure.axes[2].get_title() == "mean of the top 30"  # no more are kept
    assert "1 record of x, 1 trace " in figure.get_suptitle()


def test_a_single_score() -> None:
    """One layer of a model whose gradient is flat: nothing to scale a colour by."""
    rows = [{"layer": 0, "kind": kind, "rank": rank, "score": 1.0} for kind in ("key", "value") for rank in range(3)]
    method = METHOD | {"trace": {"nodes": 1, "score": "zscore"}}
    importance_figure(rows, 1, method, {"name": "x", "records": 1}).draw_without_rendering()


def test_off_by_default(words: list[str], tmp_path: Path) -> None:
    main(without(words, "--importance.enabled"))
    assert not list((tmp_path / "runs" / "one").glob("importance*"))


def test_a_run_in_which_no_trace_succeeds(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Profile, "add", lambda self, scores: None)
    main(words)
    folder = tmp_path / "runs" / "one"
    assert (folder / "summary.json").exists()
    assert not list(folder.glob("importance*"))
    assert "no trace succeeded" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--model.trace.pick", "random"],
            "importance.enabled: nothing is traced with model.trace.pick: random; use traced",
        ),
        (
            ["--model.trace.pick", "all"],
            "importance.enabled: nothing is traced with model.trace.pick: all; use traced",
        ),
        (["--importance", "5"], "importance: wants options of its own below it, not '5'"),
    ],
)
def test_what_traces_nothing_is_refused(
    more: list[str], message: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused([*words, *more], message, tmp_path, capsys)


def test_rome_is_refused(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rome = without(words, "--model", "--model.trace.nodes", "--model.train.passes", "--model.train.stop")
    at = ["fit", "--model", "ROME", "--model.layer", "1", "--model.mom2_adjustment", "false", *rome[1:]]
    check_refused(at, "importance.enabled: ROME traces no paths; only PAC does", tmp_path, capsys)


def check_refused(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "importance" in line] == [said[-1]]
    assert said[-1].endswith(message)
    assert not (tmp_path / "runs" / "one" / "results.jsonl").exists()


def test_resumed_run_draws_the_same(
    words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken(words, "importance.csv")
    assert (broken / "importance.csv").read_text() == (whole / "importance.csv").read_text()
    assert (imread(broken / "importance.png") == imread(whole / "importance.png")).all()


def arm(nodes: int, weight: float, **method: Any) -> dict[str, Any]:
    """An arm as pac_table.py writes it."""

    def cell(after: float, before: float | None = 10.0) -> dict[str, Any]:
        return {"before": before, "after": after, "ci": [after - 4, after + 3]}

    figures = {
        "rewrite/token_accuracy": cell(80 + nodes / 10),
        "paraphrase/token_accuracy": cell(60 + nodes / 10),
        "neighborhood/unchanged_tokens": cell(70 - nodes / 2, None),
        "score/tokens_arithmetic": cell(70 - nodes / 10, None),
        "rewrite/exact": cell(50),
    }
    about = METHOD | {"regime": "sequential", "trace": {"nodes": nodes}, "contrast": {"weight": weight, "lr": None}}
    return {"spec": [], "method": about | method, "edit_batch": 10, "figures": figures}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A result file whose arms are not in the order of their values, and misnamed."""
    arms = {
        "nodes_b": arm(40, 0.1),
        "nodes_a": arm(5, 0.1),
        "nodes_c": arm(15, 0.1),
        "lambda_1": arm(15, 1.0),
        "lambda_0": arm(15, 0, scope="edit"),
        "alone": arm(15, 0.1),
    }
    rome = arm(15, 0.1)
    rome["method"] = METHOD | {"method": "ROME"}
    arms |= {"other_1": rome, "other_2": rome, "same_1": arm(15, 0.1), "same_2": arm(15, 1.0)}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"records": 20, "data": "zsre.json", "arms": arms}))
    return path


def sweep(results: Path, prefix: str, x: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "pac_figures.py"), "--results", str(results)]
    command += ["--arms-prefix", prefix, "--x", x, "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("prefix", "x", "values"),
    [("nodes_", "trace.nodes", ["5", "15", "40"]), ("lambda_", "contrast.weight", ["0", "1.0"])],
)
def test_a_sweep(prefix: str, x: str, values: list[str], results: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures" / "pac_0.1"
    done = sweep(results, prefix, x, out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{out}.png", f"{out}.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["pac_0.1.csv", "pac_0.1.png"]
    check_image(Path(f"{out}.png"), 800, 500)
    lines = list(csv.DictReader(Path(f"{out}.csv").read_text().splitlines()))
    assert list(dict.fromkeys(line["x"] for line in lines)) == values
    arms = json.loads(results.read_text())["arms"]
    names = {
        "efficacy": "rewrite/token_accuracy",
        "generality": "paraphrase/token_accuracy",
        "locality": "neighborhood/unchanged_tokens",
        "score": "score/tokens_arithmetic",
    }
    assert len(lines) == len(values) * len(names)
    for line in lines:
        cell = arms[line["arm"]]["figures"][names[line["measure"]]]
        assert [float(line[end]) for end in ("after", "ci_low", "ci_high")] == [cell["after"], *cell["ci"]]


def test_the_figure_of_a_sweep(results: Path) -> None:
    spec = importlib.util.spec_from_file_location("pac_figures", ROOT / "benchmarks" / "pac_figures.py")
    assert spec is not None
    assert spec.loader is not None
    script: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = json.loads(results.read_text())
    arms = script.chosen(found, "nodes_", "trace.nodes")
    assert [name for _, name, _ in arms] == ["nodes_a", "nodes_c", "nodes_b"]
    title, caption = script.words(found, arms, "trace.nodes")
    assert "20 records of zsre.json, sequential regime, edit batches of 10, seed 3" in title
    assert "differ" not in caption
    rows = script.lines(arms)
    rows[0] |= {"ci_low": None, "ci_high": None}
    (panel,) = script.sweep_figure(rows, "trace.nodes", title, caption).axes
    assert [line.get_label() for line in panel.lines] == ["efficacy", "generality", "locality", "score"]
    assert np.asarray(panel.lines[2].get_ydata()).tolist() == [67.5, 62.5, 50.0]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["5", "15", "40"]
    bars = [[segment[:, 1].tolist() for segment in own.get_segments()] for own in panel.collections]
    assert [len(own) for own in bars] == [2, 3, 3, 3]
    assert bars[2] == [[63.5, 70.5], [58.5, 65.5], [46.0, 53.0]]

    other = script.chosen(found, "lambda_", "contrast.weight")
    assert script.words(found, other, "contrast.weight")[1].endswith("The arms differ also in scope.")


@pytest.mark.parametrize(
    ("prefix", "x", "message"),
    [
        (
            "alone",
            "trace.nodes",
            "--arms-prefix: a figure takes two arms named alone... or more; the file has nodes_b, ",
        ),
        (
            "none_",
            "trace.nodes",
            "--arms-prefix: a figure takes two arms named none_... or more; the file has nodes_b, ",
        ),
        ("other_", "trace.nodes", "--x: trace.nodes is not a number of the method of arm other_1"),
        ("nodes_", "trace", "--x: trace is not a number of the method of arm nodes_b"),
        ("same_", "trace.nodes", "--x: the arms same_1 and same_2 have the same trace.nodes, 15"),
    ],
)
def test_what_is_no_sweep_is_said_in_a_line(prefix: str, x: str, message: str, results: Path, tmp_path: Path) -> None:
    done = sweep(results, prefix, x, tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(message)
    assert not list(tmp_path.glob("out*"))


def test_a_file_of_another_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    for text, message in (("{}", "has no arms"), ("{", "is no JSON"), (None, "No such file")):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        done = sweep(path, "nodes_", "trace.nodes", tmp_path / "out")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert message in done.stderr
