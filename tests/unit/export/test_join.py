"""Several deltas as one: sums, order, conflicts, and how much one moves what another reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.export import compare
from kedit.export.join import Part, compose, joined, merge
from kedit.export.overlap import overlaps
from kedit.export.requests import requests_of
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.exported import card_of, logits
from tests.support.tiny_models import tiny_lm

FRANCE = EditRequest("1", "The capital of {} is", "France", "Lyon", "Paris")
NEEDLE = EditRequest("2", "{} is located in", "The Space Needle", "Rome")


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm("llama", n_layers=3, d_model=16, d_ff=40)


@pytest.fixture
def part(lm: LM) -> Callable[..., Part]:
    """A rank-one edit that reads one direction, as a part of its own."""

    def make(name: str, direction: int, *requests: EditRequest, scale: float = 1.0, **card: Any) -> Part:
        right = torch.zeros(1, 40)
        right[0, direction] = scale
        left = torch.randn(16, 1, generator=torch.Generator().manual_seed(direction))
        delta = Delta({lm.arch.path("mlp_out", 1): Factors(left, right)})
        return Part(f"deltas/{name}", delta, card_of(lm, *requests, **card))

    return make


def test_a_merge_is_the_sum_in_few_directions(lm: LM, part: Callable[..., Part]) -> None:
    parts = [part("a", 0, FRANCE), part("b", 1, NEEDLE), part("c", 0, scale=0.5)]
    total, card, (rank,) = merge(parts)
    assert (rank.before, rank.after) == (3, 2)
    with edited(lm.model, *(one.delta for one in parts)):
        wanted = logits(lm.model, lm)
    with edited(lm.model, total):
        torch.testing.assert_close(logits(lm.model, lm), wanted, atol=1e-4, rtol=1e-4)
    assert [request.case_id for request in requests_of(card)] == ["1", "2"]
    assert card["joined"] == "merge"
    assert [one["name"] for one in card["parts"]] == ["a", "b", "c"]


def test_cards_say_what_the_parts_agree_in(lm: LM, part: Callable[..., Part]) -> None:
    one = part("a", 0, FRANCE, layer=5, steps=3)
    other = part("b", 1, replace(NEEDLE, case_id="1"), layer=5, steps=4, method="PAC")
    _, card, _ = merge([one, other])
    assert card["layer"] == 5
    assert "steps" not in card
    assert card["method"] == "ROME, PAC"
    assert card["model_fingerprint"] == lm.fingerprint
    assert [request.case_id for request in requests_of(card)] == ["1", "1 (b)"]


def test_deltas_of_two_models_are_refused(part: Callable[..., Part]) -> None:
    other = part("b", 1, NEEDLE, model_fingerprint="0" * 20, model="another")
    for join in (merge, compose):
        with pytest.raises(KeditError, match=r"^deltas/b is of another model than deltas/a: another"):
            join([part("a", 0, FRANCE), other])


def test_the_later_edit_of_a_prompt_holds(part: Callable[..., Part]) -> None:
    first, again = part("a", 0, FRANCE), part("c", 2, replace(FRANCE, case_id="9", target_new="Nice"))
    kept, conflicts = compose([first, part("b", 1, NEEDLE), again])
    assert [one.name for one in kept] == ["deltas/b", "deltas/c"]
    (conflict,) = conflicts
    assert conflict.prompt == "The capital of France is"
    assert (conflict.earlier, conflict.later) == (("deltas/a", "Lyon"), ("deltas/c", "Nice"))
    assert conflict.left_out


def test_a_part_that_edits_other_prompts_too_stays(part: Callable[..., Part]) -> None:
    kept, (conflict,) = compose([part("a", 0, FRANCE, NEEDLE), part("b", 1, FRANCE)])
    assert [one.name for one in kept] == ["deltas/a", "deltas/b"]
    assert not conflict.left_out
    total, card = joined(kept, "compose")
    (factors,) = total.of_kind(Factors).values()
    rights = [own.right for one in kept for own in one.delta.of_kind(Factors).values()]
    assert torch.equal(factors.right, torch.cat(rights))
    assert card["joined"] == "compose"


def test_overlap(part: Callable[..., Part]) -> None:
    """0 where another direction is read; where the same one is, how far the other edit moves it."""
    apart, same = part("b", 1).delta, part("c", 0, scale=3.0).delta
    mine = part("a", 0).delta
    assert [one.share for one in overlaps([mine, apart])] == [0.0, 0.0]
    by = {(one.of, one.by): one.share for one in overlaps([mine, same])}
    assert by[0, 1] == pytest.approx(3.0)
    assert by[1, 0] == pytest.approx(1 / 3)
    (path,) = mine.paths
    whole = Delta({path: Dense(torch.ones(16, 40))})
    by = {(one.of, one.by): one.share for one in overlaps([mine, whole])}
    assert by[0, 1] == pytest.approx(4.0 / mine.norm())  # a column of ones
    assert by[1, 0] == pytest.approx(mine.norm() / whole.norm())
    assert overlaps([mine, Delta({"elsewhere": Dense(torch.ones(16, 40))})]) == []


def test_two_deltas_are_compared(part: Callable[..., Part]) -> None:
    a, b = part("a", 0, FRANCE), part("b", 1, NEEDLE, FRANCE)
    assert compare.equal(a.delta, part("x", 0).delta)
    assert not compare.equal(a.delta, b.delta)
    opposite = Delta({path: Factors(-own.left, own.right) for path, own in a.delta.of_kind(Factors).items()})
    for other, cosine in ((a.delta, 1.0), (opposite, -1.0), (b.delta, 0.0)):
        (line,) = compare.modules(a.delta, other)
        assert line.cosine == pytest.approx(cosine, abs=1e-6)
        assert line.norms == pytest.approx((a.delta.norm(), other.norm()))
    assert [line.norms[0] for line in compare.modules(Delta(), a.delta)] == [None]
    (line,) = compare.requests(a.card, b.card)
    assert (line.prompt, line.targets) == ("The Space Needle is located in", (None, "Rome"))
    assert compare.settings(a.card, {**a.card, "seed": 3, "layer": 1}) == {"seed": (0, 3), "layer": (None, 1)}


def test_a_card_that_is_nonsense_is_refused() -> None:
    with pytest.raises(KeditError, match=r"^entry 0 of 'requests' in the delta's card is no request"):
        requests_of({"requests": ["nonsense"]})
    assert requests_of({}) == []
    failed = {"case_id": "1", "status": "failed", "request": {}}
    assert requests_of({"requests": [failed]}) == []
