"""`kedit trace` and `layers: auto` on tiny models: files, tables, runs, what is refused."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from tests.support.device import PLACE
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME, city_facts, sequential_run

CHOOSING = "kedit.causal_tracing.auto"


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command whose tiny model is said to know the facts that stand in the file."""
    monkeypatch.setattr(
        "kedit.evaluation.score.is_known", lambda lm, records: [r.meta.get("yes", True) for r in records]
    )
    monkeypatch.chdir(tmp_path)
    data = city_facts(tmp_path / "cities.jsonl", 4)
    model = ["--lm.name", tiny_folder("llama", n_layers=3, d_model=16, d_ff=40), "--device", PLACE]
    return ["trace", *model, "--data", "Records", "--data.path", str(data), "--trace.samples", "2"]


def test_a_trace(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--data.limit", "3", "--examples", "2", "--out", "found/here"])
    said = capsys.readouterr().out
    assert "3 facts of records/cities" in " ".join(said.split())
    assert "p(answer) is" in said
    out = tmp_path / "found" / "here"
    names = {"trace.csv", "trace.json", "trace.png", "example_01.png", "example_02.png"}
    assert {path.name for path in out.iterdir()} == names
    card = json.loads((out / "trace.json").read_text())
    assert card["n_facts"] == 3
    assert card["settings"]["samples"] == 2
    assert card["settings"]["window"] == 1
    assert card["data"]["name"] == "records/cities"
    assert card["versions"]["kedit"]
    assert set(card["peaks"]) == {"state", "mlp", "attention"}
    rows = list(csv.DictReader((out / "trace.csv").open()))
    assert {row["case_id"] for row in rows} == {"fact-0", "fact-1", "fact-2"}
    assert {row["layer"] for row in rows} == {"0", "1", "2"}
    main([*words, "--data.limit", "3"])  # from the cache, and nothing is written
    assert capsys.readouterr().out.split("written")[0] == said.split("written")[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trace.noise", "0"], "trace.noise: 0.0 is not above 0"),
        (["--data.limit", "0"], "data.limit: 0 is less than 1"),
        (["--examples", "-1"], "examples: -1 is less than 0"),
        (["--trace.window", "0"], "trace.window: 0 is less than 1"),
        (["--data.skip", "9"], "data.skip: 9 passes over all 4 records"),
        (["--out", "cities.jsonl/x"], "out: cities.jsonl/x cannot be made"),
    ],
)
def test_slips(words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused([*words, *more], capsys)


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("\n") <= 3
    return said


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "{} is", "subject": "It"}, "record 0: it has no target_true"),
        ({"prompt": "so " * 400 + "{} is", "subject": "It", "target_true": "a"}, "more than the 256 of the model's"),
    ],
)
def test_records_that_cannot_be_traced(
    words: list[str], record: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cities.jsonl").write_text(json.dumps({"case_id": "0", "target_new": "Cairo"} | record) + "\n")
    assert message in refused(words, capsys)


def test_no_data_and_no_known_fact(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--data missing: which facts are traced?" in refused(["trace"], capsys)
    monkeypatch.setattr("kedit.evaluation.score.is_known", lambda lm, records: [False] * len(records))
    assert "knows no fact of records/cities, and only what a model knows can be traced" in refused(words, capsys)


@pytest.mark.parametrize(
    ("options", "layers"),
    [(QUICK_ROME | {"model.layer": "auto"}, [1]), (QUICK_MEMIT | {"model.layers": "auto"}, [0, 1])],
)
def test_a_run_chooses_its_layers(
    options: dict[str, Any],
    layers: list[int],
    tiny_folder: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("kedit.evaluation.score.is_known", lambda lm, records: [True] * len(records))
    monkeypatch.setattr(f"{CHOOSING}.FACTS", 9)
    monkeypatch.setattr(f"{CHOOSING}.peak_of", fixed_peak)
    monkeypatch.chdir(tmp_path)
    run = sequential_run(tiny_folder, city_facts(tmp_path / "cities.jsonl", 2), options)
    with caplog.at_level(logging.INFO):
        main([*run, "--run.name", "chosen"])
    text = (tmp_path / "runs" / "chosen" / "run.json").read_text()
    method = next(part for part in json.loads(text).values() if isinstance(part, dict) and "chosen_layers" in part)
    assert (method.get("layers") or [method["layer"]]) == layers
    assert method["chosen_layers"]["peak"] == 1
    assert method["chosen_layers"]["facts"] == 9
    assert "auto takes" in caplog.text
    name = "layers" if "layers" in method else "layer"
    main([*sequential_run(tiny_folder, tmp_path / "cities.jsonl", options | {f"model.{name}": named(layers, name)}),
          "--run.name", "named"])  # fmt: skip
    rows = [(tmp_path / "runs" / run / "results.jsonl").read_text() for run in ("chosen", "named")]
    assert rows[0] == rows[1]


def named(layers: list[int], name: str) -> str:
    return str(layers) if name == "layers" else str(layers[0])


def fixed_peak(effects: Any, first: int) -> Any:
    """The peak in layer 1, whatever a random model does."""
    from kedit.causal_tracing.peak import Peak

    assert (effects.shape, first) == ((9, 3), 1)
    return Peak(1, 0.1, (0.0, 0.2), (0, 2))
