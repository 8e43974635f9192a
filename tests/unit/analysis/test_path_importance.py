"""PAC's importance figure: scores of nodes by layer and rank, out of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kedit.analysis.path_importance_figure import COLUMNS, importance_figure
from kedit.callbacks import EditProgress
from kedit.cli import main
from kedit.methods.pac import Profile
from tests.support.device import ACCELERATOR
from tests.support.small_runs import option_words

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
        "lm.name": tiny_folder("llama", n_layers=3),
        "edit.regime": "sequential",
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
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


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
            ["--model.trace.node_source", "random"],
            "importance.enabled: nothing is traced with model.trace.node_source: random; use traced",
        ),
        (
            ["--model.trace.node_source", "all"],
            "importance.enabled: nothing is traced with model.trace.node_source: all; use traced",
        ),
        (["--importance", "5"], "importance: expects options of its own below it, not '5'"),
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
    base_labels = capsys.readouterr().err.splitlines()
    assert [line for line in base_labels if "importance" in line] == [base_labels[-1]]
    assert base_labels[-1].endswith(message)
    assert not (tmp_path / "runs" / "one" / "results.jsonl").exists()


def test_resumed_run_draws_the_same(
    words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken(words, "importance.csv")
    assert (broken / "importance.csv").read_text() == (whole / "importance.csv").read_text()
    assert (imread(broken / "importance.png") == imread(whole / "importance.png")).all()
