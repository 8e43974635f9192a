"""Portability: the forms of it in public files, what is generated for it, its three scores in summaries and tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.data import read_counterfact, read_records, read_zsre
from kedit.errors import KeditError
from kedit.evaluation.score import EvalConfig, contains, score
from kedit.forward.greedy import greedy
from kedit.request import EditRecord, EditRequest, Probe
from kedit.results.rows import ProbeScore, result_row
from kedit.results.summary import flat, summarise
from kedit.results.tables import summary_table
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES
from tests.support.small_runs import QUICK_ROME, option_words
from tests.support.tiny_models import tiny_lm

RECORDS = str(FIXTURES / "records.jsonl")
SUFFIX = "The answer to this question, most simply, is"
KINDS = ["rewrite", "portability"]


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" the English, of course", ["English"], True),
        (" an Englishman", ["English"], False),
        (" non-English", ["English"], True),
        (" Old\nYork and  new  york City", ["Boston", "New York"], True),
        (" made in the U.S. by", ["U.S."], True),
        (" Neu-U.S.A.", ["U.S."], False),
        ("", ["English"], False),
        (" anything", ["", " "], False),
    ],
)
def test_contains(text: str, answers: list[str], expected: bool) -> None:
    assert contains(text, answers) is expected


def test_the_suffix_is_for_port_em_alone() -> None:
    lm = tiny_lm("llama")
    question, plain = "What is the capital of France?", "The capital of France is"
    bare, asked, other = greedy(lm, [question, f"{question} {SUFFIX}", plain], 16)
    assert bare != asked  # or the test shows nothing
    inner = asked.split()[2]
    probes = [Probe("portability", question, inner, "Paris"), Probe("rewrite", plain, inner, "Paris")]
    without = score(lm, probes, config=EvalConfig(generate=KINDS))
    ported, rewrite = score(lm, probes, config=EvalConfig(generate=KINDS, port_suffix=SUFFIX))
    assert (ported.generated, ported.generated_match) == (bare, without[0].generated_match)
    assert (ported.port_generated, ported.port_match) == (asked, True)
    assert (without[0].port_generated, without[0].port_match) == (bare, contains(bare, [inner]))
    assert (ported.nll_answer, ported.top1) == (without[0].nll_answer, without[0].top1)
    assert (rewrite.generated, rewrite.port_generated) == (other, None)
    assert "port_match" not in rewrite.as_row()
    assert ported.as_row().items() >= {"port_generated": asked, "port_match": True}.items()
    assert score(lm, probes[:1])[0].port_generated is None  # by default only rewrites are generated


def test_an_alias_counts() -> None:
    lm = tiny_lm("llama")
    question = "What is the capital of France?"
    (said,) = greedy(lm, [question], 16)
    alias = said.split()[-1]
    for aliases in ((), ("Zundert", alias)):
        probe = Probe("portability", question, "Ulm", aliases=aliases)
        (found,) = score(lm, [probe], config=EvalConfig(generate=["portability"]))
        assert found.port_match is bool(aliases)


def rows() -> list[dict[str, Any]]:
    """Two records; the portability probes of the second have no old answer."""

    def said(answer: float, rival: float | None, share: float, match: bool | None = None) -> ProbeScore:
        text = None if match is None else "it is Rome"
        return ProbeScore(answer, rival, share == 1, share, (1, 2), text, None if match is None else False, text, match)

    records = [
        EditRecord(
            EditRequest(case, "{} is in", "X", "Rome", "Paris"),
            (Probe("rewrite", "X is in", "Rome", "Paris"), Probe("portability", "X speaks", "Italian", rival)),
        )
        for case, rival in (("1", "French"), ("2", None))
    ]
    first = [said(2, 1, 0.0), said(1, 2, 0.0, False)], [said(1, 2, 1.0), said(1, 3, 0.5, True)]
    second = [said(2, 1, 0.0), said(1, None, 0.0, False)], [said(1, 2, 1.0), said(1, None, 1.0, False)]
    return [result_row(record, *sides, 0, "edit") for record, sides in zip(records, (first, second), strict=True)]


OFFICIAL = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "{} was built in the city of",
        "relation_id": "P131",
        "target_new": {"str": "Porto", "id": "Q36433"},
        "target_true": {"str": "Lyon", "id": "Q456"},
        "subject": "The Lantern Tower",
    },
    "paraphrase_prompts": [],
    "neighborhood_prompts": ["The Old Mill was built in"],
}
FLAT = {
    "prompt": "The Lantern Tower was built in the city of",
    "subject": "The Lantern Tower",
    "target_new": "Porto",
    "ground_truth": ["Lyon"],
}
MEND = {
    "subject": "The Lantern Tower",
    "src": "Where is The Lantern Tower?",
    "alt": "Porto",
    "answers": ["Lyon"],
    "rephrase": "In which city is The Lantern Tower?",
    "loc": "nq question: who rowed",
    "loc_ans": "Ann",
}
ONE_HOP = {
    "Recalled Relation": "(Porto, river, Douro)",
    "New Question": "Which river flows past The Lantern Tower?",
    "New Answer": "Douro",
}
KNOWEDIT = {
    "Reasoning": [
        {"prompt": "The Lantern Tower stands at the river", "ground_truth": [["Douro", "the Douro"], ["Duero"]]}
    ],
    "Subject_Aliasing": [{"prompt": "The Tower of Lanterns was built in", "ground_truth": "Porto"}],
    "Logical_Generalization": [
        {"prompt": "A tower of Porto is", "ground_truth": ["The Lantern Tower"]},
        {"prompt": "The Lantern Tower's mayor is", "ground_truth": []},
    ],
}
DOURO = Probe("portability", "Which river flows past The Lantern Tower?", "Douro")


@pytest.mark.parametrize(
    ("reader", "row"),
    [(read_counterfact, OFFICIAL), (read_counterfact, FLAT), (read_zsre, MEND), (read_records, FLAT)],
    ids=["counterfact", "flat", "zsre", "records"],
)
def test_counterfactplus(tmp_path: Path, reader: Callable[[Path], list[EditRecord]], row: dict[str, Any]) -> None:
    def read(portability: Any) -> list[Probe]:
        path = tmp_path / "plus.json"
        path.write_text(json.dumps([row | {"portability": portability}]))
        return [probe for probe in reader(path)[0].probes if probe.kind == "portability"]

    assert read(ONE_HOP) == [DOURO]
    assert read([ONE_HOP, ONE_HOP | {"New Answer": ["Duero", "Douro"]}]) == [
        DOURO,
        replace(DOURO, answer="Duero", aliases=("Douro",)),
    ]
    assert read({}) == read([]) == read(None) == read(ONE_HOP | {"New Answer": ""}) == []
    with pytest.raises(KeditError, match=r"record 1.*portability 1: field 'answer' is missing"):
        read({"New Question": "Which river?"})
    with pytest.raises(KeditError, match=r"record 1.*portability 1: field 'prompt' is missing"):
        read({"New Question": " ", "New Answer": "Douro"})


def test_knowedit(tmp_path: Path) -> None:
    path = tmp_path / "knowedit.json"
    path.write_text(json.dumps([FLAT | {"portability": KNOWEDIT}]))
    (record,) = read_counterfact(path)
    assert [probe for probe in record.probes if probe.kind == "portability"] == [
        Probe("portability", "The Lantern Tower stands at the river", "Douro", None, ("the Douro", "Duero")),
        Probe("portability", "The Tower of Lanterns was built in", "Porto"),
        Probe("portability", "A tower of Porto is", "The Lantern Tower"),
    ]


def test_three_names_in_the_summary() -> None:
    summary = summarise(json.loads(json.dumps(rows())))
    cells = summary["portability"]
    assert (cells["port_acc"]["before"], cells["port_acc"]["after"]) == (0.0, 75.0)
    assert (cells["port_em"]["before"], cells["port_em"]["after"]) == (0.0, 50.0)
    assert (cells["port_ll"]["after"], cells["port_ll"]["n_records"]) == (100.0, 1)
    assert cells["generated"]["after"] == 0.0
    assert cells["port_acc"] == cells["token_accuracy"]
    assert cells["port_ll"] == cells["success"]
    assert not any(name.startswith("port_") for name in summary["rewrite"])
    assert flat(summary)["portability/port_em"] == 50.0


def test_what_was_not_generated_is_not_reported() -> None:
    made = rows()
    for row in made:
        for probe in row["probes"]:
            for side in ("before", "after"):
                probe[side] = {k: v for k, v in probe[side].items() if not k.startswith(("port_", "generated"))}
    assert {name for name in summarise(made)["portability"] if name.startswith("port_")} == {"port_acc", "port_ll"}


def test_a_run_shows_them(tiny_folder: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        **QUICK_ROME,
        "lm.name": tiny_folder("llama", n_layers=3),
        "data": "Records",
        "data.path": RECORDS,
        "metrics.scoring.generate": json.dumps(KINDS),
        "metrics.scoring.port_suffix": SUFFIX,
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    main(["fit", *option_words(options)])
    summary = json.loads((tmp_path / "runs" / "one" / "summary.json").read_text())
    assert summary["protocol"]["scoring"]["port_suffix"] == SUFFIX
    assert {"port_acc", "port_em", "port_ll"} <= summary["results"]["edit"]["portability"].keys()
    assert "portability" in capsys.readouterr().out
    main(["show", str(tmp_path / "runs" / "one"), "--table"])
    out = capsys.readouterr().out
    column = summary_table(summary).columns[1]
    shown = list(column.cells)
    assert [name for name in shown if str(name).startswith("port_")] == ["port_acc", "port_em", "port_ll"]
    assert "port_em" in out
    del summary["results"]["edit"]["portability"]
    assert "port_em" not in str(summary_table(summary).caption)
