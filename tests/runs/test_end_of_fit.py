"""What `kedit fit` ends with: sentences, at most ten rows, the way to the rest; and what `kedit show` says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kedit.cli import main
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import QUICK_ROME, option_words

RECORDS = str(FIXTURES / "records.jsonl")


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", "100")
    options = {
        **QUICK_ROME,
        "lm.name": tiny_folder("llama", n_layers=3),
        "data": "Records",
        "data.path": RECORDS,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
        "results.resamples": 50,
    }
    return ["fit", *option_words(options)]


@pytest.mark.parametrize("regime", ["single", "sequential"])
@pytest.mark.parametrize("generate", ["[rewrite]", "[]"])
def test_the_end_of_a_run(
    regime: str, generate: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without free generation the sentences are of the argmax tokens, read with the model's tokenizer."""
    main([*words, "--edit.regime", regime, "--metrics.scoring.generate", generate])
    out = capsys.readouterr().out
    lines = out.splitlines()
    folder = tmp_path / "runs" / "one"
    assert re.fullmatch(r"\d of 4 edited prompts give what was asked for\. Before -> after:", lines[0])
    examples = re.split(r"\n(?=- )", out[: out.index("ROME on")].rstrip())[1:]
    assert len(examples) == 3
    assert all(" -> " in example and ": " in example and "?" not in example for example in examples)
    head = next(i for i, line in enumerate(lines) if line.startswith("─"))
    rows = lines[head + 1 : next(i for i, line in enumerate(lines) if line.startswith("percent of records"))]
    assert 3 <= len(rows) <= 10
    assert ("after the last edit" in " ".join(out.split())) == (regime == "sequential")
    show = f"kedit show {folder}"
    assert lines[-3:] == [f"every record: {show}", f"every kind and metric: {show} --table", f"results: {folder}"]

    main(["show", str(folder), "--table"])
    table = capsys.readouterr().out
    assert ("generated" in re.sub(r"generated: free", "", table)) == (generate != "[]")
    main(["show", str(folder)])
    shown = capsys.readouterr().out
    assert "4 shown, measured after" in shown
    assert " -> ?" not in shown, "the model is a folder, and its tokenizer is in it"


def test_robust_queries_are_in_the_table(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*words, "--data.queries", "{paraphrases: 2, shuffles: 2, corpus: " + str(_text(tmp_path)) + "}"])
    out = capsys.readouterr().out
    assert re.search(r"\d other kinds +exact, mean", out)
    assert "micro" not in out
    main(["show", str(tmp_path / "runs" / "one"), "--table"])
    table = capsys.readouterr().out
    assert "micro" in table
    assert "shuffle" in table


def test_the_steps_of_the_first_edits_are_told_without_a_terminal(
    words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "kedit.callbacks.progress"):
        main([*words, "--progress.log_every", "0", "--data.limit", "1"])
    steps = [message for message in caplog.messages if message.startswith("0 of 1 edits done; the next: step ")]
    assert len(steps) == 2
    assert ", loss " in steps[-1]


def _text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"{i} lines of a text about the weather in some city.\n" for i in range(50)))
    return path
