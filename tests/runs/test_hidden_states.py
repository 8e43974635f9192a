"""Runs of STEAM that draw latent figures: the files, refusals, resuming; and that nothing happens by default."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from kedit.analysis.hidden_states_report import COSINE_COLUMNS, LENS_COLUMNS, SPACE_COLUMNS
from kedit.callbacks import latent as callback
from kedit.cli import main
from kedit.keyvalue import ValueOptimization
from tests.support.hidden_state_cases import editor_words, steam_words, with_editor

ON = ["--latent.enabled", "true"]
FILES = {"latent_cosine": COSINE_COLUMNS, "latent_logitlens": LENS_COLUMNS, "latent_space": SPACE_COLUMNS}


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    return steam_words(tiny_folder("llama", n_layers=6), tmp_path)


def read(folder: Path, name: str) -> list[dict[str, str]]:
    lines = (folder / f"{name}.csv").read_text().splitlines()
    assert tuple(next(csv.reader(lines))) == FILES[name]
    return list(csv.DictReader(lines))


def captions(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the figures of a run say of themselves."""
    seen: list[Any] = []
    draw = callback.cosine_figure

    def watched(lines: Any, about: Any) -> Any:
        seen.append(about)
        return draw(lines, about)

    monkeypatch.setattr(callback, "cosine_figure", watched)
    return seen


def test_a_run_with_the_editor_beside_it(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = captions(monkeypatch)
    main([*words, *ON, "--model.compare", "true", "--latent.examples", "2"])
    folder = tmp_path / "runs" / "one"
    rows = {name: read(folder, name) for name in FILES}
    for name in FILES:
        image = imread(folder / f"{name}.png")
        assert min(image.shape[:2]) > 400
        assert (image[..., :3].min(-1) < 0.9).mean() > 0.01
    assert {row["arm"] for row in rows["latent_cosine"]} == {"base", "editor", "steam", "own", "other"}
    assert {row["n"] for row in rows["latent_cosine"] if row["arm"] == "steam"} == {"5"}
    assert {row["n"] for row in rows["latent_cosine"] if row["arm"] == "own"} == {"4"}
    assert {row["arm"] for row in rows["latent_logitlens"]} == {"base", "editor", "steam", "native"}
    assert len({row["case_id"] for row in rows["latent_space"]}) == 2
    assert {row["layer"] for row in rows["latent_space"]} == {"2", "3", "4"}  # 2: above the edit; 4: aligned
    assert "Brazil" not in {row["case_id"] for row in rows["latent_space"]}  # its object has no references
    assert said[0].protocol.startswith(
        "5 edits of records/facts (6 records in the run; those with references), each alone"
    )
    assert not list(folder.glob("*.partial"))

    value = {(row["view"], row["arm"], row["layer"]): float(row["mean"]) for row in rows["latent_cosine"]}
    for layer in ("0",):  # below the edited layer
        assert value["raw", "steam", layer] == pytest.approx(value["raw", "base", layer], abs=1e-6)
    assert value["raw", "steam", "4"] != value["raw", "editor", "4"]


def test_few_edits_and_steam_alone(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = captions(monkeypatch)
    main([*words, *ON, "--latent.max_edits", "3", "--latent.examples", "0"])
    folder = tmp_path / "runs" / "one"
    rows = read(folder, "latent_cosine")
    assert {row["arm"] for row in rows} == {"base", "steam", "own", "other"}
    assert {row["n"] for row in rows if row["arm"] == "base"} == {"3"}
    assert not list(folder.glob("latent_space*"))
    assert said[0].protocol.startswith("3 edits of records/facts (6 records in the run;")


def test_edits_that_fail_are_left_out(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = ValueOptimization.close

    def breaks(self: ValueOptimization) -> None:
        close(self)
        self.failed[0] = True

    monkeypatch.setattr(ValueOptimization, "close", breaks)
    main([*words, *ON])
    rows = read(tmp_path / "runs" / "one", "latent_cosine")
    assert {row["n"] for row in rows if row["arm"] == "steam"} == {"2"}  # of 2 lanes the first fails, and Brazil
    monkeypatch.setattr(ValueOptimization, "close", lambda self: (close(self), self.failed.fill_(True)))
    main([*words, *ON, "--run.name", "none"])
    assert not list((tmp_path / "runs" / "none").glob("latent*"))
    assert "latent: no edit was made whose anchor has references" in caplog.text


def test_without_references_there_is_nothing_to_draw(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    main([*words, *ON, "--model.anchors.knowledge", "[]"])
    assert not list((tmp_path / "runs" / "one").glob("latent*"))
    assert "latent: no edit was made whose anchor has references" in caplog.text


def test_a_single_object_has_no_other_to_compare_with(words: list[str], tmp_path: Path) -> None:
    main([*words, *ON, "--data.limit", "1"])
    folder = tmp_path / "runs" / "one"
    assert {(row["view"], row["arm"]) for row in read(folder, "latent_cosine")} == {("raw", "base"), ("raw", "steam")}
    assert {row["arm"] for row in read(folder, "latent_logitlens")} == {"base", "steam"}
    assert (folder / "latent_space.png").exists()


def test_off_by_default_and_free(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def called(*_: Any) -> None:
        raise AssertionError

    for name in ("curves", "scene", "native", "cosine_figure"):
        monkeypatch.setattr(callback, name, called)
    loaded = {name for name in sys.modules if name.startswith("matplotlib.backends")}
    main(words)
    assert not list((tmp_path / "runs" / "one").glob("latent*"))
    assert {name for name in sys.modules if name.startswith("matplotlib.backends")} == loaded


def test_one_honest_edit(words: list[str], tmp_path: Path) -> None:
    main([*words, *ON, "--model.compare", "true", "--trainer.fast_dev_run", "true"])
    assert {row["n"] for row in read(tmp_path / "runs" / "one", "latent_cosine") if row["arm"] == "base"} == {"2"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.align.ratio", "0"], "latent.enabled: with lambda 0 there are no anchors to measure against"),
        (["--latent", "5"], "latent: expects options of its own below it, not '5'"),
        (["--latent.max_edits", "0"], "latent.max_edits: 0 "),
    ],
)
def test_what_cannot_be_measured_is_said(
    more: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check_refused([*words, *ON, *more], message, capsys)


def test_other_regimes_and_methods_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = "latent.enabled: states are of one edit alone; use edit.regime: single, not sequential"
    check_refused([*with_editor(words, regime="sequential"), *ON], message, capsys)
    message = "latent.enabled: ROME has no anchors to measure against; only STEAM does"
    check_refused([*editor_words(words), *ON], message, capsys)


def check_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_resumed_run_draws_the_same(
    words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken([*words, *ON, "--model.compare", "true"], "latent_cosine.csv")
    for name in FILES:
        assert (broken / f"{name}.csv").read_text() == (whole / f"{name}.csv").read_text()
        assert (imread(broken / f"{name}.png") == imread(whole / f"{name}.png")).all()
