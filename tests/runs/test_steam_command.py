"""STEAM through the command: fast_dev_run, lambda 0, a user's own knowledge base, and what is said to a slip."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import option_words

RECORDS = str(FIXTURES / "records.jsonl")
LAYERS = {"MEMIT": ("layers", "[0,1]"), "EMMET": ("layers", "[1]")}
Rows = list[dict[str, Any]]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> Callable[..., list[str]]:
    """`words("MEMIT")`: the command of STEAM around an editor, or of the editor by itself."""

    def command(editor: str, steam: bool = True, name: str = "one") -> list[str]:
        folder = tiny_folder("llama", n_layers=5, context=128)
        layers = LAYERS.get(editor, ("layer", "1"))
        of_editor = {"contexts.lengths": "[[3,2]]", "stats.tokens": 400, layers[0]: layers[1]}
        options: dict[str, Any] = {"model": "STEAM", "model.editor": editor} if steam else {"model": editor}
        options |= {f"model.{'editor.' if steam else ''}{key}": value for key, value in of_editor.items()}
        options |= {"lm.name": folder, "data": "Records", "data.path": RECORDS, "data.limit": 3}
        options |= {"run.root": tmp_path, "run.name": name, "trainer.accelerator": ACCELERATOR}
        options |= {"metrics.scoring.generate": "[]", "results.resamples": 50}
        return ["fit", *option_words(options)]

    return command


@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_fast_dev_run(editor: str, words: Any, tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words(editor), "--trainer.fast_dev_run", "true"])
    rows = rows_of(tmp_path / "one")
    assert rows
    for row in rows:
        assert row["status"] == "edited"
        for probe in row["probes"]:
            values = [
                v for measured_at in ("before", "after") for v in probe[measured_at].values() if isinstance(v, float)
            ]
            assert values
            assert all(math.isfinite(value) for value in values)
        anchor = row["edit"]["anchor"]
        assert anchor["source"] in ("single_relation", "multi_relation", "string_match", "in_context")
        assert anchor["n"] >= 1
        assert 0 < anchor["lambda"] <= 100
        assert -1 <= anchor["cosine"]["first"] <= 1
        assert -1 <= anchor["cosine"]["last"] <= 1
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    assert summary["method"]["method"] == "STEAM"
    assert summary["method"]["editor"] == editor
    assert summary["method"]["aligned_layers"] == [2, 3]
    assert sum(summary["method"]["anchor_sources"].values()) == 3


@pytest.mark.parametrize("editor", ["ROME", "RROME", "MEMIT", "EMMET"])
def test_without_weight_the_rows_are_the_editor_s(
    editor: str, words: Any, tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    main([*words(editor, steam=False, name="host"), "--model.v_num_grad_steps", "4"])
    main([*words(editor), "--model.editor.v_num_grad_steps", "4", "--model.align.ratio", "0"])
    mine = rows_of(tmp_path / "one")
    assert len(mine) == 3
    assert all(row["edit"].pop("anchor") is None for row in mine)
    assert mine == rows_of(tmp_path / "host")


def test_a_knowledge_base_of_the_user(words: Any, tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    """Four towns of Finnish speakers, by two templates; what the record edits is none of them."""
    base, templates = tmp_path / "towns.tsv", tmp_path / "templates.json"
    towns = ("Turku", "Oulu", "Espoo", "Marieke Boomgaard")
    base.write_text("".join(f"{town}\tspeaks\t\tFinnish\n" for town in towns))
    templates.write_text(json.dumps({"speaks": ["People in {} speak", "The language of {} is"]}))
    more = ["--model.anchors.knowledge", json.dumps([str(base)]), "--model.anchors.templates", str(templates)]
    main([*words("ROME"), *more, "--model.editor.v_num_grad_steps", "4"])
    anchors = {row["case_id"]: row["edit"]["anchor"] for row in rows_of(tmp_path / "one")}
    assert (anchors["2"]["source"], anchors["2"]["asked"]) == ("single_relation", 6)
    assert anchors["tower"]["source"] == "in_context"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.align.layers [1,2]", "model.align.layers: layer 1 is not above the edited layer 1; what is edited"),
        ("--model.align.layers [5]", "model.align.layers: 5 does not exist; the model's layers are 0 to 4"),
        ("--model.align.layers []", "model.align.layers: the list is empty"),
        ("--model.align.layers top", "model.align.layers: "),
        ("--model.align.ratio -1", "model.align.ratio: -1.0 is less than 0"),
        ("--model.align.patience -1", "model.align.patience: -1 is less than 0"),
        ("--model.align.weighting none", "model.align.weighting: expects one of grad_ratio, fixed, not 'none'"),
        ("--model.anchors.n_min 40", "model.anchors.n_min: 40 is more than n_max, 32"),
        ("--model.anchors.recall often", "model.anchors.recall: expects one of greedy, first_top1, first_topk"),
        ("--model.anchors.knowledge [nowhere.tsv]", "nowhere.tsv: no such file"),
        ("--model.anchors.templates nowhere.json", "nowhere.json: no such file"),
        ("--model.anchors.records [nowhere.json]", "nowhere.json: no such file"),
        ("--model.align.center objects", "model.align.center: objects needs anchors of 5 objects"),
        (
            "--model.editor STEAM",
            "model.editor: there is no class 'STEAM' for it; there are EMMET, MEMIT, PMET, ROME, RROME",
        ),
    ],
)
def test_slips(option: str, message: str, words: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words("ROME"), *option.split()])
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("kedit: error: ")
    assert error.startswith(message)
