"""MQuAKE: its cases as records, which probes can be met in which regime, and batches that cut no case."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kedit.cli import main
from kedit.data import MQuAKE, read_counterfact, read_mquake, read_robust
from kedit.data.readers.mquake import unmet
from kedit.errors import KeditError
from kedit.request import EditRecord, Probe
from tests.support.device import ACCELERATOR
from tests.support.paths import FIXTURES, SHARED
from tests.support.small_runs import option_words

Tree = dict[str, Any]


def rewrite(subject: str, verb: str, new: str, true: str) -> Tree:
    return {
        "prompt": f"{{}} {verb}",
        "relation_id": f"P{len(verb)}",
        "target_new": {"str": new, "id": f"Q{len(new)}"},
        "target_true": {"str": true, "id": f"Q{len(true)}0"},
        "subject": subject,
        "question": f"What is it that {subject} {verb}?",
    }


def hop(edit: Tree, answer: str, aliases: list[str]) -> Tree:
    text = edit["prompt"].replace("{}", edit["subject"])
    return {"cloze": text, "question": edit["question"], "answer": answer, "answer_alias": aliases}


OPUS = rewrite("Opus 7", "was written by", "Ada Lindt", "Per Holm")
ADA = rewrite("Ada Lindt", "is a citizen of", "Norway", "Chile")
SPEECH = rewrite("Norway", "speaks", "Italian", "Norwegian")
TWO = {
    "case_id": 31,
    "requested_rewrite": [OPUS, SPEECH],
    "questions": ["What is spoken where Opus 7 was written?", "Which language is that of Opus 7's author?"],
    "answer": "Spanish",
    "answer_alias": ["es"],
    "new_answer": "Italian",
    "new_answer_alias": ["it", "Italian", "Italian language"],
    "new_single_hops": [
        hop(OPUS, "Ada Lindt", ["A. Lindt"]),
        hop(ADA, "Norway", ["no", "Kingdom of Norway"]),
        hop(SPEECH, "Italian", ["it", "Italiano"]),
    ],
}
ONE = {
    "case_id": "b",
    "requested_rewrite": [ADA],
    "questions": ["What is spoken where Ada Lindt lives?"],
    "answer": "Spanish",
    "new_answer": "Norwegian",
}


def many(n: int) -> list[Tree]:
    """Cases of 1, 2, 3, 1, 2, ... edits."""
    return [
        {
            "case_id": case,
            "requested_rewrite": [
                rewrite(f"Item {case}-{e}", "is made of", "wood", "tin") for e in range(case % 3 + 1)
            ],
            "questions": [f"Where does item {case} come from?"],
            "new_answer": "Norway",
        }
        for case in range(n)
    ]


def write(folder: Path, cases: Any) -> str:
    path = folder / "mquake.json"
    path.write_text(json.dumps(cases), encoding="utf-8")
    return str(path)


def of(record: EditRecord, kind: str) -> list[Probe]:
    return [probe for probe in record.probes if probe.kind == kind]


def ids(batches: list[list[EditRecord]]) -> list[list[str]]:
    return [[record.request.case_id for record in batch] for batch in batches]


def test_a_case_is_a_record_for_every_rewrite(tmp_path: Path) -> None:
    first, second, alone = read_mquake(write(tmp_path, [TWO, ONE]))
    assert [record.request.case_id for record in (first, second, alone)] == ["31.1", "31.2", "b.1"]
    request = first.request
    assert (request.prompt, request.subject, request.relation) == ("{} was written by", "Opus 7", "P14")
    assert (request.target_new, request.target_true) == ("Ada Lindt", "Per Holm")
    assert first.meta == {"case": "31", "edits": 2, "target_new_id": "Q9", "target_true_id": "Q80"}
    aliases = ("A. Lindt",)
    assert first.probes == (
        Probe("rewrite", "Opus 7 was written by", "Ada Lindt", "Per Holm", aliases),
        Probe("paraphrase", "What is it that Opus 7 was written by?", "Ada Lindt", "Per Holm", aliases),
    )
    assert of(second, "rewrite")[0].aliases == ("Italiano",)  # "it" begins any sentence
    assert of(second, "portability") == [
        Probe("portability", text, "Italian", "Spanish", ("Italian language",)) for text in TWO["questions"]
    ]
    assert of(second, "single_hop") == [
        Probe("single_hop", "Ada Lindt is a citizen of", "Norway", None, ("Kingdom of Norway",))
    ]
    assert of(alone, "portability") == [Probe("portability", ONE["questions"][0], "Norwegian", "Spanish")]
    assert alone.meta["edits"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"requested_rewrite": []}, ": field 'requested_rewrite' must be a list of edits"),
        ({"requested_rewrite": "no"}, ": field 'requested_rewrite' must be a list of edits, not text"),
        ({"requested_rewrite": [OPUS, 5]}, ", rewrite 2: field 'requested_rewrite' must be an object, not a number"),
        ({"requested_rewrite": [OPUS, OPUS | {"target_new": None}]}, ", rewrite 2: field 'target_new' is missing"),
        ({"requested_rewrite": [OPUS | {"target_new": "Per Holm"}]}, ", rewrite 1: target_new equals the true target"),
        ({"requested_rewrite": [OPUS | {"prompt": "{} or {}"}]}, ", rewrite 1: the prompt '{} or {}' has 2 '{}'"),
        ({"requested_rewrite": [OPUS | {"question": 3}]}, ", rewrite 1: field 'question' must be text"),
        ({"questions": []}, ": field 'questions' is missing"),
        ({"new_answer": None}, ": field 'new_answer' is missing"),
        ({"questions": [3]}, ": field 'questions' must be text or a list of texts, not a number"),
        ({"new_single_hops": {}}, ""),
        ({"new_single_hops": [4]}, ": field 'new_single_hops' must be a list of objects; entry 1 is a number"),
    ],
)
def test_bad_case_is_named(tmp_path: Path, change: Tree, message: str) -> None:
    path = write(tmp_path, [ONE, TWO | change])
    if not message:
        assert len(read_mquake(path)) == 3
        return
    with pytest.raises(KeditError) as caught:
        read_mquake(path)
    text = str(caught.value)
    assert text.startswith(f"{path}, record 2 (case_id 31){message}")
    assert text.count(path) == len(text.splitlines()) == 1


def test_which_questions_can_be_met(tmp_path: Path) -> None:
    records = read_mquake(write(tmp_path, [TWO, ONE]))
    assert unmet(records) == unmet(records, "batch") == unmet(records, "sequential") == set()
    assert unmet(records, "single") == unmet(records[:1]) == unmet(records[1:]) == {"31"}
    path = write(tmp_path, [TWO, ONE])
    assert MQuAKE(path).describe()["probes"] == {"paraphrase": 3, "portability": 3, "rewrite": 3, "single_hop": 1}
    # the last edit of the first case without the one before it; then the first without the last
    assert MQuAKE(path, skip=1).describe()["probes"]["portability"] == 1
    assert "portability" not in MQuAKE(path, limit=1).describe()["probes"]


def test_batches_hold_whole_cases(tmp_path: Path) -> None:
    path = write(tmp_path, many(6))
    data = MQuAKE(path, batch_size=4)
    assert ids(data.batches) == [
        ["0.1", "1.1", "1.2"],
        ["2.1", "2.2", "2.3", "3.1"],
        ["4.1", "4.2"],
        ["5.1", "5.2", "5.3"],
    ]
    assert ids(data.make_schedule(2).batches)[2:4] == [["2.1", "2.2", "2.3"], ["3.1"]]
    assert ids(MQuAKE(path, batch_size=100).batches)[0] == [record.request.case_id for record in data.records]
    for regime in ("single", "sequential"):  # nothing has to be whole, or there is nothing to be cut
        data.regime = regime
        assert [len(batch) for batch in data.make_schedule(5).batches] == [5, 5, 2]


def test_cases_are_shuffled_whole(tmp_path: Path) -> None:
    path = write(tmp_path, many(9))
    plain, mixed = ([r.request.case_id for r in MQuAKE(path, shuffle_seed=s).records] for s in (None, 1))
    assert plain != mixed
    assert sorted(plain) == sorted(mixed)
    assert unmet(MQuAKE(path, shuffle_seed=1).records) == set()
    order = [name for name in mixed if name.startswith("5.")]
    assert order == ["5.1", "5.2", "5.3"]
    at = mixed.index("5.1")
    assert mixed[at : at + 3] == order
    with pytest.raises(KeditError, match=r"data\.sort_by_length: the edits of a case of MQuAKE keep their order"):
        MQuAKE(path, sort_by_length=True)


def test_a_batch_must_hold_the_largest_case(tmp_path: Path) -> None:
    data = MQuAKE(write(tmp_path, many(3)), batch_size=2)
    data.regime = "batch"
    with pytest.raises(KeditError, match=r"data\.batch_size: the 3 edits of case 2 .* 2 is too small for them"):
        _ = data.records


@pytest.fixture
def words(tiny_folder: Callable[..., str], tmp_path: Path) -> list[str]:
    """A quick run on both cases, one of which says "Norway speaks" a second time otherwise."""
    again = ONE | {"requested_rewrite": [ADA, SPEECH | {"target_new": "Greek"}]}
    options = {
        "lm.name": tiny_folder("llama", n_layers=3),
        "model.v_num_grad_steps": 2,
        "model.contexts.lengths": "[]",
        "data": "MQuAKE",
        "data.path": write(tmp_path, [TWO, again, ONE | {"case_id": "c"}]),
        "run.root": tmp_path / "runs",
        "run.name": "one",
        "trainer.accelerator": ACCELERATOR,
    }
    return option_words(options)


ROME = ["fit", "--model", "ROME", "--model.layer", "1", "--model.mom2_adjustment", "false"]
MEMIT = ["fit", "--model", "MEMIT", "--model.layers", "[1]", "--model.stats.tokens", "400"]
MEMIT += ["--model.stats.corpus", "self", "--edit.regime", "batch", "--data.batch_size", "2"]


def asked(row: Tree) -> Counter[str]:
    return Counter(probe["kind"] for probe in row["probes"])


@pytest.mark.parametrize("regime", ["single", "batch", "sequential"])
def test_runs(
    regime: str,
    words: list[str],
    tmp_path: Path,
    rows_of: Callable[[Path], list[Tree]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    main([*(MEMIT if regime == "batch" else [*ROME, "--edit.regime", regime]), *words])
    rows = [row for row in rows_of(tmp_path / "runs" / "one") if row["measured_at"] == "edit"]
    found = {row["case_id"]: asked(row)["portability"] for row in rows}
    said = [record.message for record in caplog.records if record.message.startswith("mquake/mquake: ")]
    alone = [line for line in said if "the multi-hop questions of 2 cases are left out" in line]
    contradict = [line for line in said if "2 edits contradict another" in line]
    if regime == "single":
        assert found == {"31.1": 0, "31.2": 0, "b.1": 0, "b.2": 0, "c.1": 1}
        assert (len(alone), len(contradict)) == (1, 0)
    else:
        assert found == {"31.1": 0, "31.2": 2, "b.1": 0, "b.2": 1, "c.1": 1}
        assert (len(alone), len(contradict)) == (0, 1)
    if regime == "batch":
        assert [row["batch"] for row in rows] == [0, 0, 1, 1, 2]


def test_too_small_a_batch_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*MEMIT, *words, "--data.batch_size", "1"])
    assert stop.value.code == 2
    assert "data.batch_size: the 2 edits of case 31" in capsys.readouterr().err


def test_cases_that_the_limit_cuts_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    data = MQuAKE(write(tmp_path, [ONE, TWO]), limit=2)
    data.prepare(lambda records: records)
    assert [record.message for record in caplog.records if "not edited whole" in record.message] == [
        "mquake/mquake: 1 cases are not edited whole (skip, limit, known); no multi-hop questions of them"
    ]
    data = MQuAKE(write(tmp_path, [ONE, TWO]))
    data.prepare(lambda records: records[:1] + records[2:])  # the model does not know "31.1"
    assert [len(of(record, "portability")) for record in data.records] == [1, 0]


def test_other_readers_keep_the_ids_and_point_here(tmp_path: Path) -> None:
    tower, _ = read_counterfact(FIXTURES / "counterfact_official.json")
    assert (tower.meta["target_new_id"], tower.meta["target_true_id"]) == ("Q36433", "Q597")
    robust = json.loads((FIXTURES / "robust.json").read_text())
    (tmp_path / "robust.json").write_text(json.dumps([robust[0] | {"target_true_id": "Q597"}]))
    assert read_robust(tmp_path / "robust.json")[0].meta["target_true_id"] == "Q597"
    with pytest.raises(KeditError, match=r"requested_rewrite.*several edits per record are MQuAKE's"):
        read_counterfact(write(tmp_path, [TWO]))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"public data sets are not at {SHARED} (set KEDIT_SHARED)")
def test_the_real_file() -> None:
    path = SHARED / "mquake_hard.json"
    data = MQuAKE(str(path), batch_size=10)
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert len(data.records) == 4 * len(raw) == 1716
    assert data.describe()["probes"] == {"paraphrase": 1716, "portability": 1287, "rewrite": 1716}
    assert {len(batch) for batch in data.batches} == {8, 4}
    texts = [case["prompt"].replace("{}", case["subject"]) for c in raw for case in c["requested_rewrite"]]
    assert [record.request.text for record in data.records] == texts
    for record in data.records:
        assert (record.meta["edits"], bool(of(record, "portability"))) == (4, record.request.case_id.endswith(".4"))
        assert all(probe.answer and probe.answer != probe.rival for probe in record.probes)
        assert min(len(alias) for probe in record.probes for alias in (*probe.aliases, "abc")) == 3
