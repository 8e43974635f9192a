"""Which demonstrations stand before an edited fact, and that none of them gives an answer of the run away."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from kedit.data import read_facts
from kedit.evaluation.tfidf import Tfidf
from kedit.methods.memory.demonstrations import SHARES, DemonstrationPool, mixture, said, unrelated
from kedit.model.sentence_encoder import SentenceEncoder
from tests.support.tiny_models import save_tiny

TRAIN, TEST = read_facts("train"), read_facts("test")


def test_the_published_mixture() -> None:
    assert Counter(mixture(32)) == SHARES
    assert Counter(mixture(16)) == {"copy": 2, "update": 6, "retain": 8}
    assert Counter(mixture(8)) == {"copy": 1, "update": 3, "retain": 4}
    assert mixture(0) == []
    for k in range(1, 33):  # evenly: every beginning has its share, to less than one
        for kind, n in Counter(mixture(k)).items():
            assert abs(n - k * SHARES[kind] / 32) < 1


def test_the_nearest_is_last() -> None:
    pool = DemonstrationPool(TRAIN)
    request = TEST[0].request
    chosen = pool.choose(TEST[0], 16)
    tfidf = Tfidf.fit([said(record.request) for record in TRAIN])
    asked = {probe.text for probe in TEST[0].probes}
    others = [record for record in TRAIN if record.request.text not in asked]
    near = sorted(others, key=lambda record: -tfidf.cosine(said(request), said(record.request)))[:16]
    for one, record in zip(reversed(chosen), near, strict=True):
        assert one.text.startswith(f"New Fact: {said(record.request)}\nPrompt: ")
        assert one.text.endswith("\n\n")
    assert Counter(one.kind for one in chosen) == {"copy": 2, "update": 6, "retain": 8}
    for one in chosen:
        fact, asked = one.text.removeprefix("New Fact: ").rstrip("\n").split("\nPrompt: ")
        if one.kind == "copy":
            assert asked == fact
    assert pool.choose(TEST[0], 0) == []
    assert len(pool.choose(TEST[0], 1000)) == len(others)


def test_nothing_that_is_asked_is_given_away() -> None:
    """No fact of the same prompt or subject, no probe of the record with an answer, and not the subject's name."""
    edited = TEST[:20]
    pool = DemonstrationPool(unrelated([*TRAIN, *TEST], edited))
    subjects = {str(record.request.subject).casefold() for record in edited}
    assert not any(str(record.request.subject).casefold() in subjects for record in pool.records)
    kinds = Counter[str]()
    for record in edited:
        asked = {probe.text for probe in record.probes} | {record.request.text}
        chosen = pool.choose(record, 32)
        assert len(chosen) == 32
        kinds.update(one.kind for one in chosen)
        for one in chosen:
            line = one.text.rstrip("\n").split("\nPrompt: ")[1]
            assert not any(line.startswith(f"{text} ") for text in asked)
            assert one.kind == "copy" or str(record.request.subject).casefold() not in line.casefold()
    assert min(kinds.values()) > 40


def test_a_record_without_the_texts_for_its_kind_gives_another() -> None:
    bare = [replace(record, probes=()) for record in TRAIN]
    assert {one.kind for one in DemonstrationPool(bare).choose(TEST[0], 8)} == {"copy"}
    some = [replace(r, probes=tuple(p for p in r.probes if p.kind == "paraphrase")) for r in TRAIN]
    assert {one.kind for one in DemonstrationPool(some).choose(TEST[0], 8)} == {"copy", "update"}


def test_an_encoder_chooses_too(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(save_tiny(tmp_path, "llama")))
    pool = DemonstrationPool(TRAIN, encoder)
    first, other = (pool.choose(record, 3)[-1] for record in (TEST[0], TEST[50]))
    assert first != other


@pytest.mark.parametrize("k", [1, 5])
def test_the_same_every_time(k: int) -> None:
    assert DemonstrationPool(TRAIN).choose(TEST[3], k) == DemonstrationPool(TRAIN).choose(TEST[3], k)
