"""STEAM with `compare`: the editor alone is what a run of the editor gives, and STEAM is as it is without."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.keyvalue import ValueOptimization
from tests.support.hidden_state_cases import editor_words, steam_words, with_editor
from tests.support.tiny_models import TEXT

Rows = list[dict[str, Any]]
COMPARE = ["--model.compare", "true"]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    return steam_words(tiny_folder("llama", n_layers=6), tmp_path)


def by_case(rows: Rows, measured_at: str) -> dict[str, dict[str, Any]]:
    return {row["case_id"]: row for row in rows if row["measured_at"] == measured_at}


def check_alike(rows: dict[str, dict[str, Any]], others: dict[str, dict[str, Any]]) -> None:
    """The same edits, measured in batches of another composition."""
    assert rows.keys() == others.keys()
    for case, row in rows.items():
        assert row["edit"] == others[case]["edit"]
        assert row["status"] == others[case]["status"]
        for mine, theirs in zip(row["probes"], others[case]["probes"], strict=True):
            for side in ("before", "after"):
                assert mine[side]["nll_answer"] == pytest.approx(theirs[side]["nll_answer"], abs=1e-4)


def test_both_are_as_in_runs_of_their_own(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    main([*words, *COMPARE])
    out = capsys.readouterr().out
    assert "with STEAM" in out
    main([*words, "--run.name", "without"])
    main([*editor_words(words), "--run.name", "alone"])
    rows, without, alone = (rows_of(runs / name) for name in ("one", "without", "alone"))
    assert {row["measured_at"] for row in rows} == {"edit", "editor"}
    check_alike(by_case(rows, "edit"), by_case(without, "edit"))
    check_alike(by_case(rows, "editor"), by_case(alone, "edit"))  # the editor's own figures, none of STEAM's
    summary = json.loads((runs / "one" / "summary.json").read_text())
    assert summary["method"]["compare"] is True
    assert set(summary["results"]) == {"edit", "editor"}
    assert summary["failed"] == {}


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_around_memit(words: list[str], regime: str, tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    words = with_editor(words, "MEMIT", layer=None, mom2_adjustment=None, layers=[0, 1], regime=regime,
                        stats={"tokens": 400, "corpus": "self"})  # fmt: skip
    words += ["--data.batch_size", "3"] if regime == "batch" else []
    main([*words, *COMPARE])
    main([*editor_words(words), "--run.name", "alone"])
    rows, alone = (rows_of(tmp_path / "runs" / name) for name in ("one", "alone"))
    check_alike(by_case(rows, "editor"), by_case(alone, "edit"))
    assert [row["edit"]["loss"] for row in rows if row["measured_at"] == "edit"] != [
        row["edit"]["loss"] for row in alone
    ]


@pytest.mark.parametrize("fails", ["edit", "editor"])
def test_a_failure_of_either_is_told_apart(
    fails: str, words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    close, calls = ValueOptimization.close, [0]

    def breaks(self: ValueOptimization) -> None:
        close(self)
        calls[0] += 1
        if calls[0] == (1 if fails == "edit" else 2):  # of the first batch: STEAM, then the editor alone
            self.failed[0] = True

    monkeypatch.setattr(ValueOptimization, "close", breaks)
    main([*words, *COMPARE])
    folder = tmp_path / "runs" / "one"
    failed = [row for row in rows_of(folder) if row["status"] == "failed"]
    assert [row["measured_at"] for row in failed] == [fails]
    assert failed[0]["error"].startswith("ROME alone: v*" if fails == "editor" else "v*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["failed"] == {failed[0]["case_id"]: failed[0]["error"]}
    others = [row for row in rows_of(folder) if row["case_id"] == failed[0]["case_id"] and row["measured_at"] != fails]
    assert [row["status"] for row in others] == ["edited"]


def test_what_similarity_measures_is_steam(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    text = tmp_path / "corpus.txt"
    text.write_text(TEXT)
    queries = {"shuffles": 2, "long_words": [5], "long_contexts": 1, "train_long": 1, "corpus": str(text)}
    more = ["--data.queries", json.dumps(queries), "--similarity.enabled", "true", "--similarity.bounds", "false"]
    main([*words, *more, *COMPARE, "--robustness.fluency", "false", "--data.limit", "2"])
    main([*words, *more, "--robustness.fluency", "false", "--data.limit", "2", "--run.name", "without"])
    rows, without = (by_case(rows_of(tmp_path / "runs" / name), "edit") for name in ("one", "without"))
    found = {case: row["similarity"]["layers"] for case, row in rows.items()}
    assert found == {case: row["similarity"]["layers"] for case, row in without.items()}


def test_one_honest_edit(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words, *COMPARE, "--trainer.fast_dev_run", "true"])
    assert {row["measured_at"] for row in rows_of(tmp_path / "runs" / "one")} == {"edit", "editor"}


def test_sequential_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*with_editor(words, regime="sequential"), *COMPARE])
    assert stop.value.code == 2
    assert "kedit: error: model.compare: in the sequential regime" in capsys.readouterr().err


def test_resumed_run_reports_the_same(
    words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole_and_broken([*words, *COMPARE], "summary.json")
