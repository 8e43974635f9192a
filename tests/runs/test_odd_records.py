"""Whole runs on records that used to go astray: settings of other data, doubled ids, ids that are no folder names."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.small_runs import QUICK_ROME, option_words

FACT = {"prompt": "The capital of {} is", "target_new": "Rome", "target_true": "Paris"}


@pytest.fixture
def run(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., Path]:
    """The folder of a run over records with these ids, on top of a configuration for Facts."""

    def edit(case_ids: list[str], *more: str) -> Path:
        (tmp_path / "base.yaml").write_text(
            "data: {class_path: Facts, init_args: {limit: 1, known: true, shuffle_seed: 0}}\n"
        )
        rows = [FACT | {"case_id": name, "subject": f"land {i}"} for i, name in enumerate(case_ids)]
        (tmp_path / "my.json").write_text(json.dumps(rows))
        options = {
            **QUICK_ROME,
            "lm.name": tiny_folder("llama", n_layers=3),
            "data": "Records",
            "data.path": tmp_path / "my.json",
            "run.root": tmp_path / "runs",
            "run.name": "one",
            "trainer.accelerator": ACCELERATOR,
        }
        main(["fit", "--config", str(tmp_path / "base.yaml"), *option_words(options), *more])
        return tmp_path / "runs" / "one"

    return edit


def test_every_record_is_edited_under_its_own_name(run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    case_ids = ["a", "a", "a-2", "A", "..", "x" * 300, "q/1:a?\n", ""]
    named = ["a", "a-3", "a-2", "A", "..", "x" * 300, "q/1:a?\n", "8"]
    with caplog.at_level(logging.INFO, "kedit"):
        folder = run(case_ids)
    assert "records/my: 8 records in the file, 8 to edit" in caplog.messages
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["case_id"] for line in lines] == named
    made = {path.name: json.loads((path / "card.json").read_text()) for path in (folder / "deltas").iterdir()}
    assert sorted(card["requests"][0]["case_id"] for card in made.values()) == sorted(named)
    assert {"a", "a-2", "a-3", "8"} <= set(made)
    assert len({name.casefold() for name in made}) == len(named)
    assert all(len(name.encode()) <= 100 for name in made)
    assert {path.name for path in folder.parent.iterdir()} == {"one"}


def test_results_say_what_was_left_out(run: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kedit"):
        folder = run(["a", "b", "c", "d"], "--data.skip", "1", "--data.limit", "2")
    assert "records/my: 4 records in the file, 2 to edit: 2 left out (1 skip, 1 limit)" in caplog.messages
    for name in ("run.json", "summary.json"):
        data = json.loads((folder / name).read_text())["data"]
        assert (data["in_file"], data["records"], data["left_out"]) == (4, 2, {"skip": 1, "limit": 1})
