"""TF-IDF by hand, the references of a record, and the means of fluency and consistency."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from kedit.evaluation.consistency import collection, references_of, summary_rows
from kedit.evaluation.fluency import ngram_entropy
from kedit.evaluation.tfidf import Tfidf, terms
from kedit.request import EditRecord, EditRequest, Probe

TEXTS = ["the red fox", "The blue fox.", "the sea"]


def test_weights_by_hand() -> None:
    assert terms("It's the Fox, «the» fox_1!") == ["it's", "the", "fox", "the", "fox_1"]
    fitted = Tfidf.fit(TEXTS)
    assert fitted.idf["the"] == 1.0  # in all of them
    assert fitted.idf["fox"] == pytest.approx(math.log(4 / 3) + 1)
    assert fitted.idf["red"] == pytest.approx(math.log(4 / 2) + 1)
    assert fitted.card() == {"fingerprint": fitted.fingerprint, "texts": 3, "words": 5}
    with pytest.raises(ValueError, match="at least one text"):
        Tfidf.fit([])


def test_cosine_by_hand() -> None:
    fitted = Tfidf.fit(TEXTS)
    fox, red, new = math.log(4 / 3) + 1, math.log(2) + 1, math.log(4) + 1
    a, b = math.hypot(2 * fox, red), math.hypot(fox, 1.0)
    assert fitted.cosine("fox, red fox", "The FOX!") == pytest.approx(2 * fox * fox / (a * b))
    assert fitted.cosine("fox", "fox hen") == pytest.approx(fox / math.hypot(fox, new))  # unseen words count
    assert fitted.cosine("the red fox", "fox red the") == pytest.approx(1.0)
    assert fitted.cosine("red fox", "blue sea") == 0.0
    assert fitted.cosine("", "blue sea") == fitted.cosine("...", "...") == 0.0
    assert fitted.cosine("the fox", "the sea") < fitted.cosine("the fox", "a fox")  # rare words tell more


def test_fingerprint_is_of_the_texts_in_any_order() -> None:
    fitted = Tfidf.fit(TEXTS)
    assert fitted.fingerprint == Tfidf.fit(TEXTS[::-1]).fingerprint
    others = [TEXTS[:2], [*TEXTS, "the sea"], ["the red foxThe blue fox.", "the sea"], ["the red fox", "the sea"]]
    assert len({Tfidf.fit(texts).fingerprint for texts in others} | {fitted.fingerprint}) == 5


def record(
    case: str, relation: str, new: str, true: str | None, near: list[str] | None = None, **meta: Any
) -> EditRecord:
    request = EditRequest(case, "{} is in", f"X{case}", new, true, relation)
    probes = [Probe("rewrite", request.text, new, true), Probe("portability", f"X{case} speaks", "Italian")]
    probes += [Probe("neighborhood", text, true or "June", new) for text in near or []]
    return EditRecord(request, tuple(probes), meta)


POOL = [
    record("1", "city", "Rome", "Paris"),
    record("2", "city", "Oslo", "Rome", ["Y is in", "Z lies in"]),
    record("3", "port", "Oslo", "Rome", ["W stands in"]),
    record("4", "city", "Rome", "Paris", ["V is in"]),
    record("5", "port", "Paris", None, ["In spring comes"]),
]


def test_references() -> None:
    snippets = record(
        "1", "city", "Rome", "Paris", attribute_snippets=["On Rome. ", 3, ""], attribute_prompts=["U is in"]
    )
    assert references_of(snippets, POOL) == ["On Rome."]
    prompts = record("1", "city", "Rome", "Paris", attribute_prompts=["U is in", " "])
    assert references_of(prompts, POOL) == ["U is in Rome"]
    # what others of the relation say is in Rome; not those that an edit puts there
    assert references_of(POOL[0], POOL) == ["X2 is in Rome", "Y is in Rome", "Z lies in Rome"]
    # of the relation there is nobody else: Paris as anybody's
    assert references_of(POOL[4], POOL) == ["X1 is in Paris", "X4 is in Paris", "V is in Paris"]
    assert references_of(POOL[2], POOL) == []
    assert references_of(record("2", "city", "Rome", "Oslo"), POOL[1:2]) == []  # itself


def test_collection_says_everything_once() -> None:
    said = collection([POOL[1], POOL[1], record("6", "city", "Rome", None, attribute_prompts=["U is in"])])
    assert said == [
        "X2 is in Oslo", "X2 is in Rome", "Y is in Rome", "Z lies in Rome", "X2 speaks Italian",
        "X6 is in Rome", "X6 speaks Italian", "U is in Rome",
    ]  # fmt: skip


def row(case: str, measured_at: str, *values: float | None) -> dict[str, Any]:
    sides = [{"fluency": f, "consistency": c} for f, c in (values[:2], values[2:])]
    return {"case_id": case, "measured_at": measured_at, "texts": {"before": sides[0], "after": sides[1]}}


def test_mean_fluency() -> None:
    assert summary_rows([]) == []
    texts = ["a b a b a", "one two three four", "a"]
    (line,) = summary_rows([row(t, "edit", ngram_entropy("a"), None, ngram_entropy(t), None) for t in texts], 100)
    assert line["after"] == pytest.approx(sum(map(ngram_entropy, texts)) / 3, abs=1e-4)
    assert line["before"] == 0.0


def test_mean_consistency_and_what_it_was_fitted_on() -> None:
    fitted = Tfidf.fit(TEXTS)
    first = fitted.cosine("the fox is red", "red fox")
    lone = row("1", "edit", None, first, None, first)
    without = row("2", "edit", None, None, None, None)  # nothing to compare with
    (line,) = summary_rows([lone, without], 100)
    assert (line["name"], line["unit"], line["n_records"]) == ("consistency_local", "percent", 1)
    assert line["after"] == pytest.approx(100 * first, abs=1e-4)
    same = fitted.cosine("sea", "sea")
    (line,) = summary_rows([lone, without, row("3", "edit", None, same, None, same)], 100)
    assert line["after"] == pytest.approx(100 * (first + 1) / 2, abs=1e-4)
    card = fitted.card()
    assert json.loads(json.dumps(card)) == card


def test_summary_rows() -> None:
    rows = [
        row("1", "edit", 5.0, 0.2, 4.0, 0.4),
        row("2", "edit", 6.0, None, 4.0, None),  # without references
        row("3", "edit", None, None, None, None),  # without room
        row("1", "end", 5.0, 0.2, 3.0, 0.1),
        {"case_id": "4", "measured_at": "edit", "texts": None},
        {"case_id": "5", "measured_at": "edit"},
    ]
    lines = summary_rows(rows, 100)
    assert [(line["measured_at"], line["name"], line["unit"], line["n_records"]) for line in lines] == [
        ("edit", "fluency", "bits", 2),
        ("edit", "consistency_local", "percent", 1),
        ("end", "fluency", "bits", 1),
        ("end", "consistency_local", "percent", 1),
    ]
    assert [(line["before"], line["after"], line["change"]) for line in lines] == [
        (5.5, 4.0, -1.5),
        (20.0, 40.0, 20.0),
        (5.0, 3.0, -2.0),
        (20.0, 10.0, -10.0),
    ]
    assert lines[0]["change_ci"][0] < -1.5 < lines[0]["change_ci"][1]
    assert lines[0]["ci"] == [4.0, 4.0]
    assert summary_rows([]) == []
