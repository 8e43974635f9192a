"""Fluency by hand and in lanes; the robustness report of real (tiny) runs, and that it is a function of the rows."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kedit.cli import main
from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.evaluation.fluency import entropy, ngram_entropy, sampled_texts, words_of
from kedit.forward.sampling import sample
from kedit.model.lm import LM
from kedit.results.robustness import COLUMNS, as_csv, fluency_cell, summary_rows
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import QUICK_ROME, option_words
from tests.support.tiny_models import TEXT, tiny_lm

RECORDS = str(FIXTURES / "records.jsonl")
KINDS = ("rewrite", "paraphrase_id", "paraphrase_ood", "shuffle_id", "shuffle_ood", "long_context", "neighborhood")
Rows = list[dict[str, Any]]


def a_delta(lm: LM, seed: int, scale: float = 3.0) -> Delta:
    made = torch.Generator().manual_seed(seed)
    left, right = torch.randn(lm.d_model, 1, generator=made), torch.randn(1, 80, generator=made)
    return Delta({lm.arch.path("mlp_out", 1): Factors(scale * left, right)})


def test_words_and_entropy() -> None:
    assert words_of("It's 12 o’clock, isn't it?") == ["It's", "12", "o’clock", ",", "isn't", "it", "?"]
    assert entropy(["a"] * 9, 2) == 0
    assert entropy(["a", "b", "c", "d", "e"], 2) == 2
    assert entropy(["a"], 2) == 0
    assert math.copysign(1, entropy([], 3)) == 1
    # a b a b a: bigrams ab 2, ba 2 (1 bit); trigrams aba 2, bab 1
    thirds = -(2 / 3) * math.log2(2 / 3) - (1 / 3) * math.log2(1 / 3)
    assert ngram_entropy("a b a b a") == pytest.approx((2 / 3 * 1 + 4 / 3 * thirds) / 2)
    assert ngram_entropy("") == 0


def test_rows_with_seeds_of_their_own() -> None:
    lm = tiny_lm("gpt2")
    prompts = [lm.encode(text) for text in ("The capital of", "The king of", "You can see the")]
    alone = [sample(lm, [prompt], 9, seed=[i], stop_at_eos=False)[0] for i, prompt in enumerate(prompts)]
    assert sample(lm, prompts, 9, seed=[0, 1, 2], stop_at_eos=False) == alone
    assert sample(lm, prompts[::-1], 9, seed=[2, 1, 0], stop_at_eos=False) == alone[::-1]
    assert sample(lm, prompts[:1], 9, seed=[5], stop_at_eos=False) != alone[:1]
    assert sample(lm, [], 9, seed=[]) == []
    assert len({len(prompt) for prompt in prompts}) > 1  # those that are shorter do not wait
    for mixed in (False, True):
        assert sample(lm, prompts, 9, seed=[0, 1, 2], stop_at_eos=False, mixed=mixed) == alone
        some = sample(lm, prompts, [2, 9, 0], seed=[0, 1, 2], stop_at_eos=False, mixed=mixed)
        assert some == [alone[0][:-7], alone[1], prompts[2]]
    with pytest.raises(ValueError, match="1 seeds for 3 rows"):
        sample(lm, prompts, 9, seed=[0])


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_sampling_in_lanes_is_sampling_from_the_edited_model(model_type: str) -> None:
    lm = tiny_lm(model_type)
    deltas = [a_delta(lm, 0), a_delta(lm, 1)]
    prompts = [lm.encode("The capital of France is")] * 3
    mixed = sample(lm, prompts, 12, seed=[4, 4, 4], lanes=[1, -1, 0], bank=BatchedDeltas(lm.model, deltas))
    expected = []
    for delta in (deltas[1], Delta(), deltas[0]):
        with edited(lm.model, delta):
            expected += sample(lm, prompts[:1], 12, seed=[4])
    assert mixed == expected
    assert len({tuple(row) for row in mixed}) == 3


def test_fluency() -> None:
    def fluency(lm: LM, prompts: list[str], seeds: list[str]) -> list[float | None]:
        return [None if text is None else ngram_entropy(text) for text in sampled_texts(lm, prompts, seeds)]

    lm = tiny_lm("gpt2")
    prompts = ["The capital of France is", "He", "The capital of Italy is"]
    values = fluency(lm, prompts, ["a", "b", "c"])
    assert fluency(lm, prompts[:1], ["a"]) == values[:1]
    assert fluency(lm, prompts[::-1], ["c", "b", "a"]) == values[::-1]
    assert all(value is not None and 0 < value < 7 for value in values)
    assert fluency(lm, ["many words " * 100], ["a"]) == [None]
    for parameter in lm.model.parameters():
        parameter.zero_()  # all tokens are equally probable: five of them are chosen from, always the same
    (dull,) = fluency(lm, prompts[:1], ["a"])
    assert dull is not None
    assert values[0] is not None
    assert dull < values[0]


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run with queries."""
    text = tmp_path / "corpus.txt"
    text.write_text(TEXT)
    options = {
        **QUICK_ROME,
        "lm.name": tiny_folder("llama", n_layers=3),
        "edit.lanes": 3,
        "data": "Records",
        "data.path": RECORDS,
        "data.queries": json.dumps({"shuffles": 4, "long_words": [20], "train_long": 2, "corpus": str(text)}),
        "results.resamples": 50,
        "robustness.resamples": 50,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return ["fit", *option_words(options)]


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_report_of_a_run(
    regime: str, words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*words, "--edit.regime", regime])
    assert capsys.readouterr().out.splitlines()[-1] == f"results: {tmp_path / 'runs' / 'one'}"
    main(["show", str(tmp_path / "runs" / "one"), "--table"])
    out = capsys.readouterr().out
    folder = tmp_path / "runs" / "one"
    rows = rows_of(folder)
    moments = ["edit", "end"] if regime == "sequential" else ["edit"]
    assert list(dict.fromkeys(row["measured_at"] for row in rows)) == moments
    for row in rows:
        assert row["fluency"].keys() == {"before", "after"}
        assert all(0 < value < 7 for value in row["fluency"].values())
    lines = json.loads((folder / "robustness.json").read_text())["figures"]
    assert [(line["measured_at"], line["kind"]) for line in lines] == [
        (w, k) for w in moments for k in (*KINDS, "fluency")
    ]
    summary = json.loads((folder / "summary.json").read_text())["results"]
    for line in lines[: len(KINDS)]:
        cell = summary[line["measured_at"]][line["kind"]][line["metric"]]
        assert (line["micro_after"], line["after"]) == (cell["micro"]["after"], cell["after"])
        assert line["n_probes"] == cell["n_probes"]
    assert summary_rows(rows, 50) == lines
    text = (folder / "robustness.csv").read_text()
    assert as_csv(lines) == text
    assert tuple(next(csv.reader(text.splitlines()))) == COLUMNS
    for kind in (*KINDS, "fluency"):
        assert kind.replace("_", " ") in out


def test_nothing_without_queries(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words, "--data.queries", "null"])
    folder = tmp_path / "runs" / "one"
    assert not list(folder.glob("robustness*"))
    assert not any("fluency" in row for row in rows_of(folder))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "data.queries: expects options of its own below it, not '5'"),
        ("{shuffle: 3}", "data.queries.shuffle: there is no such option; did you mean shuffles?"),
        ("{shuffles: -3}", "data.queries.shuffles: -3 is less than 0"),
    ],
)
def test_bad_option_is_named(value: str, message: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--data.queries", value])
    assert capsys.readouterr().err.splitlines()[-1] == f"kedit: error: {message}"


def test_fluency_can_be_left_out(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words, "--robustness.fluency", "false"])
    folder = tmp_path / "runs" / "one"
    assert not any("fluency" in row for row in rows_of(folder))
    lines = json.loads((folder / "robustness.json").read_text())["figures"]
    assert [line["kind"] for line in lines] == list(KINDS)


def test_lanes_do_not_matter(words: list[str], tmp_path: Path, rows_of: Callable[[Path], Rows]) -> None:
    main([*words, "--run.name", "three"])
    main([*words, "--edit.lanes", "1", "--run.name", "alone"])
    three, alone = (
        {row["case_id"]: row["fluency"]["before"] for row in rows_of(tmp_path / "runs" / n)} for n in ("three", "alone")
    )
    assert three == alone


@pytest.mark.parametrize("regime", ["single", "sequential"])
def test_resumed_run_reports_the_same(
    regime: str, words: list[str], whole_and_broken: Callable[[list[str], str], tuple[Path, Path]]
) -> None:
    whole, broken = whole_and_broken([*words, "--edit.regime", regime], "robustness.json")
    assert (broken / "robustness.json").read_text() == (whole / "robustness.json").read_text()


def test_fluency_cell() -> None:
    rows: Rows = [{"case_id": str(i), "fluency": {"before": 5.0 + i, "after": 4.0 + i}} for i in range(4)]
    rows += [{"case_id": "x"}, {"case_id": "y", "fluency": {"before": None, "after": None}}]
    cell = fluency_cell(rows)
    assert cell is not None
    assert (cell["before"], cell["after"], cell["change"], cell["n_records"]) == (6.5, 5.5, -1.0, 4)
    assert cell["change_ci"] == [-1.0, -1.0]
    assert cell["ci"][0] < 5.5 < cell["ci"][1]
    assert fluency_cell(rows[4:]) is None
