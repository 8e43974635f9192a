"""Look-ups against formulas written here, and what an addition touches."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from kedit.delta import fact_index
from kedit.delta.fact_index import WordIndex
from kedit.delta.prompt_memory import PromptMemory, PromptRule, StoredFact
from kedit.delta.shelf import Shelf
from kedit.text.terms import terms

WORDS = ["the", "capital", "of", "is", "located", "in", *(f"name{i}" for i in range(60))]


def prompts(n: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) + f" {i}" for i in range(n)]


def slow(texts: list[str], counts: dict[str, int], background: int, query: str) -> list[float]:
    found = []
    n = background + len(texts)
    for text in texts:
        share = {True: 0.0, False: 0.0}
        for term in set(text.split()):
            df = counts.get(term, 0) + sum(term in other.split() for other in texts)
            share[term in query.split()] += math.log((2 + n) / (1 + df)) ** 3
        found.append(share[True] / (share[True] + share[False]))
    return found


def test_against_the_formula() -> None:
    texts, counts = prompts(40), {"the": 90, "of": 70, "name3": 1}
    index = WordIndex(100)
    for text in texts:
        index.add(text, {term: counts[term] for term in terms(text) if term in counts})
    for query in [texts[5], f"long before it {texts[7]} and after", "name3 in the capital", "nothing at all?"]:
        np.testing.assert_allclose(index.alike(query), slow(texts, counts, 100, query), rtol=1e-12)
    assert index.alike(texts[5])[5] == pytest.approx(1.0)
    assert index.alike("x " + texts[7])[7] == pytest.approx(1.0)


def test_the_order_of_facts_changes_no_bit() -> None:
    texts = prompts(60)
    one, other = WordIndex(10), WordIndex(10)
    for text in texts:
        one.add(text, {})
    for text in reversed(texts):
        other.add(text, {})
    for query in texts[:10]:
        assert np.array_equal(one.alike(query), other.alike(query)[::-1])


def test_one_fact_without_a_background_is_found_by_its_own_prompt_alone() -> None:
    index = WordIndex(0)
    index.add("The capital of France is", {})
    assert index.alike("The capital of France is")[0] == 1
    assert index.alike("Who are you?")[0] == 0


def test_an_addition_reads_its_own_text_alone_and_a_look_up_the_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 facts: no fact is read again, however many there are."""
    read: list[str] = []
    monkeypatch.setattr(fact_index, "terms", lambda text: read.append(text) or terms(text))
    shelf, rule = Shelf(), PromptRule("{}\n", threshold=0.9)
    texts = prompts(10_000)
    for text in texts:
        shelf.add(PromptMemory(rule, (StoredFact(text, text),)))
    assert read == texts
    read.clear()
    found = [shelf.find(text) for text in texts[:20]]
    assert read == texts[:20]
    assert [one.pieces for one in found if one is not None] == [(f"{text}\n",) for text in texts[:20]]
    shelf.add(PromptMemory(rule, (StoredFact(texts[3], "something newer"),)))  # a known prompt is not even indexed
    assert read == texts[:20]
    newer = shelf.find(texts[3])
    assert newer is not None
    assert newer.pieces == ("something newer\n",)


def test_terms() -> None:
    assert terms("The capital of France's NORTH, of course, isn't it?") == [
        "the", "capital", "of", "france", "north", "course", "isn't", "it",
    ]  # fmt: skip
    assert terms("法国的首都") == ["法国", "国的", "的首", "首都"]
    assert terms("国") == ["国"]
    assert terms("?!") == ["?!"]
