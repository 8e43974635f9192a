"""Probes that any record gives: their rules, that they depend on seed and record alone, and which records have none."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from kedit.callbacks.metrics import OF_KEDIT
from kedit.data import Facts, Records, read_facts
from kedit.data.choices import KINDS as CHOICES
from kedit.data.derived import DERIVED, NAMES, Derived, kinds_of, with_derived
from kedit.data.negation import negated
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe, fingerprint_of
from kedit.results.record_view import TITLES
from tests.support.paths import FIXTURES
from tests.support.tiny_models import tiny_lm

FACTS = read_facts("test")[:40]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lm(request: pytest.FixtureRequest) -> LM:
    return tiny_lm(request.param, n_layers=1, context=1024)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(f"w{line}x{i}" for i in range(40)) for line in range(60)))
    return str(path)


def derived(
    lm: LM, records: list[EditRecord], *names: Derived, corpus: str = "self", seed: int = 0
) -> list[list[Probe]]:
    """The derived probes alone, by record."""
    made = with_derived(lm, records, FACTS, names or NAMES, corpus, seed)
    return [[probe for probe in record.probes if probe.kind in DERIVED] for record in made]


@pytest.mark.parametrize(
    ("template", "denied"),
    [
        ("The capital of {} is", "The capital of X is not"),
        ("{}, which is located in", "X, which is not located in"),
        ("{} can be found in", "X cannot be found in"),
        ("In {}, the official language was", "In X, the official language was not"),
        ("{} plays as", "X does not play as"),
        ("{}, who works for", "X, who does not work for"),
        ("{} died in the city of", "X did not die in the city of"),
        ("{} has a citizenship from", "X does not have a citizenship from"),
        ("{} has been working for", "X has not been working for"),
        ("{}, in", None),  # no verb
        ("What is known is that {} plays", None),  # a question's word, and two verbs
        ("What is the capital of {}?", None),
        ("{} is not in", None),
        ("The man who was {} is in", None),
        ("{} who plays is in", None),
        ("The plays of {}", None),  # a verb only right behind the subject
    ],
)
def test_the_rule_of_negation(template: str, denied: str | None) -> None:
    assert negated(template, "X") == denied


def test_words_of_the_subject_are_no_verbs() -> None:
    assert negated("{} is in", "What was, is not") == "What was, is not is not in"
    assert negated("{}, in", "Life is Beautiful") is None


def test_negated_asks_for_the_truth(lm: LM) -> None:
    for record, (probe,) in zip(FACTS, derived(lm, FACTS, "negated"), strict=True):
        assert (probe.answer, probe.rival) == (record.request.target_true, record.request.target_new)
        assert "not" in probe.text.split() or "cannot" in probe.text


def test_neighbours_stand_behind_the_edit(lm: LM) -> None:
    for record, made in zip(FACTS, derived(lm, FACTS, "neighborhood_prefixed"), strict=True):
        near = [probe for probe in record.probes if probe.kind == "neighborhood"]
        assert len(made) == len(near) > 0
        for probe, neighbour in zip(made, near, strict=True):
            assert probe.text == f"{record.request.stating(record.request.target_new)}. {neighbour.text}"
            assert replace(probe, kind="neighborhood", text=neighbour.text) == neighbour


def test_prefixes(lm: LM, text: str) -> None:
    own = EditRecord(EditRequest("own", "{} is in", "w", "Rome", "Paris"), ())  # every line of the text has its subject
    made = derived(lm, [*FACTS[:5], own], "prefix_50", "prefix_200", corpus=text)
    assert made[-1] == []
    for record, probes in zip(FACTS[:5], made, strict=False):
        assert [probe.kind for probe in probes] == ["prefix_50", "prefix_200"]
        for probe, most in zip(probes, (50, 200), strict=True):
            before = probe.text.removesuffix(f" {record.request.text}")
            assert most - 12 < sum(b > a for a, b in lm.offsets(before)[1]) <= most  # cut at a word
            assert before != probe.text
            assert (probe.answer, probe.rival) == (record.request.target_new, record.request.target_true)
    assert len({probe.text for probes in made for probe in probes}) == 10


def test_choices(lm: LM) -> None:
    placed = set()
    for record, probes in zip(FACTS, derived(lm, FACTS, "choice"), strict=True):
        request = record.request
        assert request.target_true is not None
        assert [probe.kind for probe in probes] == list(CHOICES)
        lists = {probe.text.rpartition("Question: ")[2] for probe in probes}
        assert len(lists) == 1  # the same options in the same order, whatever stands before
        question, *lines, last = lists.pop().split("\n")
        options = dict(line.split(". ", 1) for line in lines)
        assert (question, last, list(options)) == (request.text, "Answer:", ["A", "B", "C", "D"])
        assert len({option.casefold() for option in options.values()}) == 4
        for probe in probes:
            assert (options[probe.answer], options[probe.rival or ""]) == (request.target_new, request.target_true)
            assert probe.options == ("A", "B", "C", "D")
            assert "from your own memory" in probe.text
        alone, supporting, irrelevant, contradicting = (probe.text.split("\n")[0] for probe in probes)
        assert not alone.startswith("Text:")
        assert supporting == f"Text: {request.stating(request.target_new)}."
        assert contradicting == f"Text: {request.stating(request.target_true)}."
        assert not any(word in irrelevant for word in (*options.values(), request.named()))
        same = [r.request for r in FACTS if r.request.relation == request.relation]
        known = {t.casefold() for r in same for t in (r.target_new, r.target_true) if t is not None}
        if len(known) >= 4:
            assert {option.casefold() for option in options.values()} <= known
        placed.add(probes[0].answer)
    assert placed == {"A", "B", "C", "D"}


def test_only_seed_and_record_count(lm: LM, text: str) -> None:
    whole = derived(lm, FACTS, corpus=text)
    assert derived(lm, FACTS[7:9], corpus=text) == whole[7:9]
    assert derived(lm, FACTS[::-1], corpus=text)[::-1] == whole
    other = derived(lm, FACTS[:20], corpus=text, seed=1)
    drawn = {"prefix_50", "prefix_200", *CHOICES}
    for kind in DERIVED:
        texts = [[[p.text for p in probes if p.kind == kind] for probes in some[:20]] for some in (whole, other)]
        assert (texts[0] != texts[1]) == (kind in drawn)


def test_records_that_no_rule_fits(lm: LM, text: str, caplog: pytest.LogCaptureFixture) -> None:
    request = EditRequest("1", "Who leads {}?", "Rome", "Ann")
    records = [
        EditRecord(request, (Probe("rewrite", request.text, "Ann"),)),  # no true target, no neighbours, a question
        EditRecord(replace(request, case_id="2", subject=None, prompt="It is", target_true="Bob"), ()),
        EditRecord(replace(request, case_id="3", prompt=f"a{lm.tokenizer.eos_token}b {{}} is"), ()),  # of a template
    ]
    with caplog.at_level(logging.INFO):
        made = with_derived(lm, records, records, NAMES, text)
    kinds = [{probe.kind for probe in record.probes} for record in made]
    assert kinds == [{"rewrite", "prefix_50", "prefix_200"}, {"prefix_50", "prefix_200"}, set()]
    assert "of 3 records: prefix_50 of 2, prefix_200 of 2, negated of 0" in caplog.text


def test_of_a_data_set(lm: LM, text: str) -> None:
    path = str(FIXTURES / "records.jsonl")
    plain, asked = Records(path), Records(path, derived=["negated", "prefix_50"], derived_corpus=text)
    for data in (plain, asked):
        data.prepare(lambda records: records, lambda: lm)
    assert [record.request for record in plain.records] == [record.request for record in asked.records]
    assert "derived" not in plain.describe()
    assert asked.describe()["derived"] == {"kinds": ["negated", "prefix_50"], "corpus": text, "seed": 0}
    assert asked.describe()["probes"]["prefix_50"] == len(asked.records)
    assert plain.fingerprint != asked.fingerprint
    alone = Facts(known=False, limit=3, derived=["neighborhood_prefixed"], probe_kinds=["neighborhood_prefixed"])
    alone.prepare(lambda records: records, lambda: lm)
    assert {probe.kind for record in alone.records for probe in record.probes} == {"neighborhood_prefixed"}


def test_what_is_refused(lm: LM, tmp_path: Path) -> None:
    with pytest.raises(KeditError, match=r"data\.derived: 'negate' cannot be derived; give some of .*choice"):
        Facts(derived=["negate"])  # type: ignore[list-item]
    with pytest.raises(KeditError, match=r"data\.derived_seed: -1 is no seed"):
        Facts(derived_seed=-1)
    with pytest.raises(KeditError, match=r"data\.probe_kinds: facts/test has no prefix_50 probes"):
        _ = Facts(known=False, derived=["negated"], probe_kinds=["prefix_50"]).records
    with pytest.raises(KeditError, match=r"data\.derived_corpus: .*nowhere\.txt"):
        with_derived(lm, FACTS[:1], FACTS, ["prefix_50"], str(tmp_path / "nowhere.txt"))
    (tmp_path / "one.txt").write_text("a single line")
    with pytest.raises(KeditError, match=r"data\.derived_corpus: .*at least two different lines"):
        with_derived(lm, FACTS[:1], FACTS, ["prefix_50"], str(tmp_path / "one.txt"))


def test_every_kind_is_known_elsewhere() -> None:
    assert set(kinds_of(NAMES)) == set(DERIVED) <= set(OF_KEDIT) & set(TITLES)


def test_old_records_keep_their_fingerprint() -> None:
    assert fingerprint_of(FACTS[:3]) == "d52f620ae885436c"
    (record, *_) = FACTS
    more = replace(record, probes=(replace(record.probes[0], options=("A", "B")), *record.probes[1:]))
    assert fingerprint_of([more]) != fingerprint_of([record])
