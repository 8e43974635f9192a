"""Runs that measure similarities: rows, CSV, figure, refusals and resuming; and that nothing happens by default."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from kedit.analysis.similarity import KINDS
from kedit.analysis.similarity_report import COLUMNS, as_csv, summary_rows
from kedit.callbacks import similarity as callback
from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import option_words
from tests.support.tiny_models import TEXT

RECORDS = str(FIXTURES / "records.jsonl")
Rows = list[dict[str, Any]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run of REP with queries and similarities; later words win."""
    text = tmp_path / "corpus.txt"
    text.write_text(TEXT)
    editor = {
        "class_path": "ROME",
        "init_args": {
            "layer": 1,
            "mom2_adjustment": False,
            "v_num_grad_steps": 3,
            "contexts": {"lengths": [[3, 1]]},
            "stats": {"corpus": str(text)},
        },
    }
    options = {
        "model": "REP",
        "model.editor": json.dumps(editor),
        "model.adapter": json.dumps({"steps": 3, "others": 2, "corpus_tokens": 64}),
        "lm.name": tiny_folder("llama", n_layers=3),
        "edit.lanes": 2,
        "data": "Records",
        "data.path": RECORDS,
        "data.queries": json.dumps({"shuffles": 4, "long_words": [20], "train_long": 2, "corpus": str(text)}),
        "similarity.enabled": "true",
        "robustness.fluency": "false",
        "robustness.resamples": 20,
        "results.resamples": 20,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


def plain_words(words: list[str]) -> list[str]:
    """The same run with the editor alone."""
    given = dict(zip(words[1::2], words[2::2], strict=True))
    editor = json.loads(given.pop("--model.editor"))
    given = {"--model": "ROME", **{k: v for k, v in given.items() if not k.startswith("--model")}}
    more = {f"--model.{name}": v if isinstance(v, str) else json.dumps(v) for name, v in editor["init_args"].items()}
    return ["fit", *(part for pair in (given | more).items() for part in pair)]


def test_a_run_with_rep(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    main(words)
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    assert {row["measured_at"] for row in rows} == {"edit", "editor"}
    own = [row for row in rows if "similarity" in row]
    assert [row["case_id"] for row in own] == [row["case_id"] for row in rows if row["measured_at"] == "edit"]
    kinds = {kind for row in own for kind in row["similarity"]["layers"]["1"]}
    assert kinds == set(KINDS)
    for row in own:
        assert set(row["similarity"]) == {"layers", "r_min", "r_max"}
        for readings in row["similarity"]["layers"]["1"].values():
            for sides in readings.values():
                assert set(sides) == {"before", "after", "open"}
        neighbors = [probe for probe in row["probes"] if probe["kind"] == "neighborhood"]
        assert len(row["similarity"]["r_max"]) == len(neighbors)
    text = (folder / "similarity.csv").read_text()
    assert tuple(next(csv.reader(text.splitlines()))) == COLUMNS
    assert as_csv(summary_rows(rows)) == text
    for kind in kinds:
        assert kind.replace("_", " ") in out
    image = imread(folder / "similarity.png")
    assert min(image.shape[:2]) > 300
    ink = image[..., :3].min(-1) < 0.9
    assert ink.mean() > 0.01
    assert np.unique(image.reshape(-1, image.shape[-1]), axis=0).shape[0] > 20
    assert out.splitlines()[-1] == f"results: {folder}"


def test_a_run_of_the_editor_alone(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*plain_words(words), "--similarity.bounds", "false"])
    folder = tmp_path / "runs" / "one"
    for row in rows_of(folder):
        assert set(row["similarity"]) == {"layers"}
    lines = list(csv.DictReader((folder / "similarity.csv").read_text().splitlines()))
    assert {line["mean_after"] + line["open"] + line["bound"] for line in lines} == {""}
    assert (folder / "similarity.png").stat().st_size > 10_000


def test_every_layer_of_memit(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    at = words.index("--model.editor") + 1
    editor = json.loads(words[at])
    del editor["init_args"]["layer"], editor["init_args"]["mom2_adjustment"]
    editor = {"class_path": "MEMIT", "init_args": editor["init_args"] | {"layers": [0, 1]}}
    main([*words[:at], json.dumps(editor), *words[at + 1 :]])
    folder = tmp_path / "runs" / "one"
    own = [row["similarity"] for row in rows_of(folder) if row["measured_at"] == "edit"]
    assert all(list(values["layers"]) == ["0", "1"] and "r_max" in values for values in own)
    lines = list(csv.DictReader((folder / "similarity.csv").read_text().splitlines()))
    assert [line["layer"] for line in lines] == ["0"] * (len(lines) // 2) + ["1"] * (len(lines) // 2)


def test_off_by_default_and_free(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any) -> None:
        raise AssertionError

    for name in ("measure", "summary_rows", "draw", "others_of"):
        monkeypatch.setattr(callback, name, called)
    loaded = {name for name in sys.modules if name.startswith("matplotlib.backends")}
    at = words.index("--similarity.enabled")
    main([*words[:at], *words[at + 2 :]])
    folder = tmp_path / "runs" / "one"
    assert not list(folder.glob("similarity*"))
    assert not any("similarity" in row for row in rows_of(folder))
    assert {name for name in sys.modules if name.startswith("matplotlib.backends")} == loaded


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--data.queries", "null"],
            "similarity.enabled: there are no queries to measure; give data.queries its options",
        ),
        (
            ["--edit.regime", "sequential"],
            "similarity.enabled: r(k) is of one edit alone; use edit.regime: single, not sequential",
        ),
        (["--similarity", "5"], "similarity: expects options of its own below it, not '5'"),
    ],
)
def test_what_cannot_be_measured_is_said(
    more: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*words, *more])
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_resumed_run_reports_the_same(
    words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken(words, "similarity.csv")
    assert (broken / "similarity.csv").read_text() == (whole / "similarity.csv").read_text()
