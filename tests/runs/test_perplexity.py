"""The `Perplexity` callback: what rows and its file say in every regime, that it is the edited models', and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.delta.apply import edited
from kedit.delta.serialization import load_delta
from kedit.evaluation.drift import believed, divergences
from kedit.evaluation.perplexity import perplexities, windows_of
from kedit.forward.binding import load_lm
from kedit.model.lm import LMConfig
from tests.support.small_runs import QUICK_MEMIT, QUICK_ROME, city_facts, refused_with_one_error, sequential_run
from tests.support.tiny_models import TEXT

Rows = list[dict[str, Any]]
OPTIONS = {"perplexity.enabled": "true", "perplexity.tokens": 60, "perplexity.window": 25, "perplexity.kl": 40}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join([TEXT] * 10))
    return path


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path, text: Path) -> Callable[..., list[str]]:
    """The words of a run over five facts."""
    data = city_facts(tmp_path / "facts.jsonl", 5)

    def made(method: dict[str, Any], **more: Any) -> list[str]:
        options = method | OPTIONS | {"perplexity.text": text, "run.root": tmp_path / "runs", "run.name": "one"}
        return sequential_run(tiny_folder, data, options | {name.replace("__", "."): v for name, v in more.items()})

    return made


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_a_run(
    regime: str,
    words: Callable[..., list[str]],
    text: Path,
    tmp_path: Path,
    tiny_folder: Callable[..., str],
    rows_of: Callable[[Path], Rows],
) -> None:
    more: dict[str, Any] = {"data__batch_size": 5} if regime == "batch" else {}
    more |= {"metrics__eval_at": "[2]"} if regime == "sequential" else {"edit__lanes": 3 * (regime == "single")}
    main(words(QUICK_MEMIT, edit__regime=regime, **more))
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    lm = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3, d_model=16, d_ff=40)))
    windows = windows_of(lm, text.read_text(), 60, 25)
    (before,) = perplexities(lm, windows)
    kept = believed(lm, windows, 40)
    measured = [row for row in rows if "perplexity" in row]
    assert {row["perplexity"]["before"] for row in measured} == {round(before, 4)}
    after = {(row["measured_at"], row["case_id"]): row["perplexity"]["after"] for row in measured}
    figures = {line["measured_at"]: line for line in json.loads((folder / "perplexity.json").read_text())["figures"]}
    if regime == "sequential":
        assert {at for at, _ in after} == {"at_2", "end"}
        assert set(figures) == {"at_2", "end"}
        assert len(set(after.values())) == 2
        assert len(after) == 2 + 5
        paths = dict.fromkeys([f"fact-{i}" for i in range(5)], folder / "delta")
    else:
        assert len(after) == len(rows) == 5
        assert len(set(after.values())) == (5 if regime == "single" else 1)
        names = [f"fact-{i}" for i in range(5)]
        paths = {name: folder / "deltas" / (name if regime == "single" else "batch-0") for name in names}
        assert figures["edit"]["after"] == pytest.approx(sum(after.values()) / 5, abs=1e-3)
        assert figures["edit"]["n_records"] == 5
    drifts = {(row["measured_at"], row["case_id"]): row["perplexity"]["kl"] for row in measured}
    at = "end" if regime == "sequential" else "edit"
    last = [kl for (moment, _), kl in drifts.items() if moment == at]
    assert figures[at]["kl"] == pytest.approx(sum(last) / len(last), abs=1e-5)
    assert figures[at]["kl_ci"][0] <= figures[at]["kl"] <= figures[at]["kl_ci"][1]
    for name, path in paths.items():
        with edited(lm.model, load_delta(path, lm)[0]):
            (value,), (kl,) = perplexities(lm, windows), divergences(lm, kept)
        assert after[at, name] == pytest.approx(value, rel=1e-4)
        assert drifts[at, name] == pytest.approx(kl, rel=1e-3, abs=2e-6)
        assert kl > 0
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["protocol"]["perplexity"] == {
        "text": json.loads((folder / "perplexity.json").read_text())["text"],
        "tokens": windows.predicted,
        "window": 25,
        "kl": 40,
    }


def test_the_end_is_measured_without_rows_of_it(words: Callable[..., list[str]], tmp_path: Path) -> None:
    main(words(QUICK_ROME, metrics__measure="edit"))
    (line,) = json.loads((tmp_path / "runs" / "one" / "perplexity.json").read_text())["figures"]
    assert line["measured_at"] == "end"
    assert line["after"] != line["before"]
    assert line["kl"] > 0


def test_a_resumed_run_says_the_same(
    words: Callable[..., list[str]], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    run = words(QUICK_ROME, metrics__eval_at="[2,4]")
    at = run.index("--run.name")
    whole, broken = whole_and_broken(run[:at] + run[at + 2 :], "perplexity.json")
    assert (broken / "perplexity.json").read_text() == (whole / "perplexity.json").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"perplexity__text": "nowhere.txt"}, "perplexity.text: nowhere.txt"),
        ({"perplexity__window": 1}, "perplexity.window: 1 is less than 2"),
        ({"perplexity__tokens": 0}, "perplexity.tokens: 0 is less than 2"),
        ({"perplexity__kl": -1}, "perplexity.kl: -1 is less than 0"),
        ({"perplexity__enabled": "false"}, "perplexity.kl: it is measured on perplexity.text; set perplexity.enabled"),
        ({"perplexity__resamples": 0}, "perplexity.resamples: 0 is less than 1"),
    ],
)
def test_what_is_refused(
    more: dict[str, Any], message: str, words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_with_one_error(words(QUICK_ROME, **more), message, capsys)


def test_without_kl_nothing_says_so(
    words: Callable[..., list[str]], tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    main(words(QUICK_ROME, edit__regime="single", perplexity__kl="false", data__limit=1))
    assert set(rows_of(tmp_path / "runs" / "one")[0]["perplexity"]) == {"before", "after"}
    (line,) = json.loads((tmp_path / "runs" / "one" / "perplexity.json").read_text())["figures"]
    assert not {"kl", "kl_ci"} & set(line)


def test_a_text_must_be_named(words: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    run = words(QUICK_ROME)
    at = run.index("--perplexity.text")
    with pytest.raises(SystemExit):
        main(run[:at] + run[at + 2 :])
    assert "perplexity.text: of which text? Give a text file" in capsys.readouterr().err
