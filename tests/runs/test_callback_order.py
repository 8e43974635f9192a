"""The order of kedit's callbacks decides in which order they print, and nothing of what they write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.callbacks import EditProgress
from kedit.cli import main
from kedit.cli.options.parts import CALLBACKS
from tests.support.device import ACCELERATOR
from tests.support.small_runs import FEW_STEPS, QUICK_ROME, city_facts, option_words
from tests.support.tiny_models import TEXT

REPORTS = ("texts.json", "robustness.json", "robustness.csv", "curve.csv")


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run of all that looks at rows, one of whose records has a probe that fits into no context."""
    text = tmp_path / "corpus.txt"
    text.write_text(TEXT)
    data = city_facts(tmp_path / "facts.jsonl", 3)
    long = {"case_id": "long", "prompt": "{} is in", "subject": "Ulm", "target_new": "Rome", "target_true": "Germany"}
    with data.open("a") as file:
        file.write(json.dumps(long | {"neighbors": ["is and was and will be " * 40 + "in"]}) + "\n")
    options = QUICK_ROME | FEW_STEPS | {
        "lm.name": tiny_folder("llama", n_layers=3),
        "data": "Records",
        "data.path": data,
        "data.queries": json.dumps({"shuffles": 2, "long_words": [20], "train_long": 2, "corpus": str(text)}),
        "metrics.scoring.generate": "[]",
        "results.resamples": 50,
        "texts.enabled": "true",
        "texts.resamples": 50,
        "robustness.resamples": 50,
        "run.root": tmp_path / "runs",
        "trainer.accelerator": ACCELERATOR,
    }  # fmt: skip
    return ["fit", *option_words(options)]


def written(folder: Path) -> dict[str, Any]:
    """What a run wrote, but for when and how long."""
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("provenance", "written", "timing"):
        del summary[name]
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    reports = {name: (folder / name).read_text() for name in REPORTS if (folder / name).exists()}
    cards = {str(p.relative_to(folder)): json.loads(p.read_text())["requests"] for p in folder.rglob("card.json")}
    return {"summary": summary, "rows": rows, "reports": reports, "cards": cards}


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_reversed(regime: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*words, "--edit.regime", regime]
    words += ["--metrics.eval_at", "[2]"] if regime == "sequential" else []
    main([*words, "--run.name", "as-they-are"])
    monkeypatch.setattr("kedit.cli.commands.fit.CALLBACKS", dict(list(CALLBACKS.items())[::-1]))
    main([*words, "--run.name", "reversed"])
    first, second = (written(tmp_path / "runs" / name) for name in ("as-they-are", "reversed"))
    assert first == second
    assert len(first["rows"]) == {"single": 3, "sequential": 3 + 2 + 3}[regime] + 1
    assert first["rows"][-1]["case_id"] == "long"
    assert set(first["summary"]["failed"]) == {"long"}
    assert len(first["cards"]) == {"single": 3, "sequential": 1}[regime]
    assert all(first["cards"].values())
    assert len(first["reports"]) == {"single": 3, "sequential": 4}[regime]


def test_the_bar_is_closed_before_tables_are_printed(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stop = EditProgress._stop

    def closes(self: EditProgress) -> None:
        seen.append("closed")
        stop(self)

    def prints(self: Any, *_: Any, **__: Any) -> None:
        seen.append("printed")

    monkeypatch.setattr(EditProgress, "_stop", closes)
    monkeypatch.setattr("rich.console.Console.print", prints)
    main([*words, "--run.name", "one"])
    assert "printed" in seen
    assert seen[0] == "closed"
