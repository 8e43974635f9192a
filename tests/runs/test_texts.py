"""The `Texts` callback: what it writes in every regime, that the texts are the edited models', and drawn once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.data import read_records
from kedit.delta.apply import edited
from kedit.delta.serialization import load_delta
from kedit.evaluation.consistency import collection, references_of, summary_rows
from kedit.evaluation.fluency import ngram_entropy, sampled_texts
from kedit.evaluation.tfidf import Tfidf
from kedit.forward.binding import load_lm
from kedit.model.lm import LMConfig
from tests.support.device import ACCELERATOR
from tests.support.small_runs import option_words
from tests.support.tiny_models import TEXT

ROWS = [
    {"prompt": "{} is a city in", "subject": "Berlin", "target_new": "Italy", "target_true": "Germany",
     "attribute_prompts": ["Rome is a city in", "Milan lies in"]},
    {"prompt": "The mother tongue of {} is", "subject": "Jean Gabin", "target_new": "Dutch", "target_true": "French"},
    {"prompt": "The capital of {} is", "subject": "France", "target_new": "Tokyo", "target_true": "Paris",
     "neighbors": ["The Eiffel Tower is in"]},
    {"prompt": "The capital of {} is", "subject": "Egypt", "target_new": "Paris", "target_true": "Cairo"},
]  # fmt: skip
Rows = list[dict[str, Any]]


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A file of four records; the second and the third have no references."""
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def words(records: Path, tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run with texts."""
    options = {
        "lm.name": tiny_folder("llama", n_layers=3),
        "model.v_num_grad_steps": 3,
        "model.contexts.lengths": "[]",
        "data": "Records",
        "data.path": records,
        "results.resamples": 50,
        "texts.enabled": "true",
        "texts.resamples": 50,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return option_words(options)


ROME = ["fit", "--model", "ROME", "--model.layer", "1", "--model.mom2_adjustment", "false", "--edit.lanes", "3"]
MEMIT = ["fit", "--model", "MEMIT", "--model.layers", "[1]", "--model.stats.tokens", "400"]
MEMIT += ["--model.stats.corpus", "self", "--edit.regime", "batch", "--data.batch_size", "3"]


@pytest.fixture
def queries(tmp_path: Path) -> list[str]:
    """Options that give the records robust queries, of which `Robustness` reports the fluency too."""
    text = tmp_path / "corpus.txt"
    text.write_text(TEXT)
    return ["--data.queries", json.dumps({"shuffles": 2, "long_words": [20], "train_long": 2, "corpus": str(text)})]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each call that sampled any."""
    seen: list[int] = []

    def spy(lm: Any, prompts: list[str], *args: Any) -> Any:
        seen.append(len(prompts))
        return sampled_texts(lm, prompts, *args)

    monkeypatch.setattr("kedit.methods.base.sampled_texts.sampled_texts", spy)
    return seen


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_a_run(
    regime: str,
    records: Path,
    words: list[str],
    tmp_path: Path,
    rows_of: Callable[[Path], Rows],
    tiny_folder: Callable[..., str],
) -> None:
    main([*(MEMIT if regime == "batch" else [*ROME, "--edit.regime", regime]), *words])
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    known = {record.request.case_id: record for record in read_records(records)}
    fitted = Tfidf.fit(collection(known.values()))
    report = json.loads((folder / "texts.json").read_text())
    assert report["consistency_local"] == {"fitted_on": {"records": len(known)} | fitted.card()}
    assert report["figures"] == summary_rows(rows, 50)
    moments = ["edit", "end"] if regime == "sequential" else ["edit"]
    assert [(line["measured_at"], line["name"]) for line in report["figures"]] == [
        (measured_at, name) for measured_at in moments for name in ("fluency", "consistency_local")
    ]

    lm = load_lm(LMConfig(name=tiny_folder("llama", n_layers=3)))
    for row in rows:
        case = row["case_id"]
        references = " ".join(references_of(known[case], list(known.values())))
        name = {"single": f"deltas/{case}", "batch": f"deltas/batch-{row['batch']}", "sequential": "delta"}[regime]
        delta, _ = load_delta(folder / name, lm)
        prompt, seed = known[case].request.text.strip(), f"0/{case}"
        (before,) = sampled_texts(lm, [prompt], [seed])
        with edited(lm.model, delta):
            (after,) = sampled_texts(lm, [prompt], [seed])
        assert before is not None
        assert after is not None
        sides = [("before", before)] if row["measured_at"] == "edit" and regime == "sequential" else None
        for side, text in sides or [("before", before), ("after", after)]:
            found = row["texts"][side]
            assert found["fluency"] == pytest.approx(ngram_entropy(text), abs=1e-6)
            if references:
                assert found["consistency"] == pytest.approx(fitted.cosine(text, references), abs=1e-6)
            else:
                assert found["consistency"] is None
    assert len({row["texts"]["after"]["consistency"] is None for row in rows}) == 2  # or half of it is not tested
    assert any(row["texts"]["after"] != row["texts"]["before"] for row in rows)


def test_off_by_default(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], draws: list[int]) -> None:
    at = words.index("--texts.enabled")
    main([*ROME, *words[:at], *words[at + 2 :]])
    folder = tmp_path / "runs" / "one"
    assert not (folder / "texts.json").exists()
    assert not any("texts" in row for row in rows_of(folder))
    assert draws == []


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_robustness_and_texts_share_their_samples(
    regime: str,
    words: list[str],
    queries: list[str],
    tmp_path: Path,
    rows_of: Callable[[Path], Rows],
    draws: list[int],
) -> None:
    run = [*ROME, "--edit.regime", regime, *words, *queries]
    main(run)
    rows = rows_of(tmp_path / "runs" / "one")
    for row in rows:
        assert row["fluency"] == {side: row["texts"][side]["fluency"] for side in ("before", "after")}
    both = list(draws)
    draws.clear()
    main([*run, "--robustness.fluency", "false", "--run.name", "alone"])
    alone = rows_of(tmp_path / "runs" / "alone")
    assert not any("fluency" in row for row in alone)
    assert [row["texts"] for row in alone] == [row["texts"] for row in rows]
    assert draws == both
    # single: before and after of each record; sequential: before, after its edit, after the last
    assert sum(draws) == {"single": 2, "sequential": 3}[regime] * len(ROWS)


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_resumed_run_reports_the_same(
    regime: str, words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    run = [*ROME, "--edit.lanes", "1", "--edit.regime", regime, *words]
    whole, broken = whole_and_broken(run, "texts.json")
    assert (broken / "texts.json").read_text() == (whole / "texts.json").read_text()


def test_a_prompt_without_room_has_no_figures(
    words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], tiny_folder: Callable[..., str]
) -> None:
    long = {"prompt": "{} " + "is and was and will be " * 20 + "in", "subject": "Ulm", "target_new": "Rome"}
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps(long) + "\n")
    main([*ROME, *words, "--data.path", str(path)])
    (row,) = rows_of(tmp_path / "runs" / "one")
    assert row["texts"]["after"] == {"fluency": None, "consistency": None}
    assert json.loads((tmp_path / "runs" / "one" / "texts.json").read_text())["figures"] == []


def test_a_plain_value_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    at = words.index("--texts.enabled")
    with pytest.raises(SystemExit):
        main([*ROME, *words[:at], *words[at + 4 :], "--texts", "5"])
    assert "texts: expects options of its own below it, not '5'" in capsys.readouterr().err
