"""Latent positioning on tiny models: what is recalled, what is averaged, and every source that an anchor can have."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.errors import KeditError
from kedit.forward.residual_stream import states
from kedit.methods.steam import Anchor, AnchorConfig, Leaks, Pool, Reference, position
from kedit.methods.steam.config import RECALLS
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.steam_cases import FAMILIES, SUBJECTS, TEMPLATES, block_states, fond_of, references, said
from tests.support.tiny_models import KINDS, tiny_lm

NOTHING = Leaks.of([])
FOND = [("gpt2", "French", 2.0), ("gptj", "city is", 3.0), ("llama", "Paris", 3.0), ("qwen2", "Rome Paris", 4.0)]
ALL = tuple(TEMPLATES)
Case = tuple[str, str, float]


def request_of(answer: str) -> EditRequest:
    return EditRequest("1", "The mother tongue of {} is", "Danielle Darrieux", answer)


def naive_counts(lm: LM, found: list[Reference]) -> dict[str, list[Reference]]:
    """Which references pass each rule."""
    seen = [(reference, *said(lm, reference)[1:]) for reference in found]
    return {
        "greedy": [reference for reference, _, greedy in seen if greedy],
        "first_top1": [reference for reference, rank, _ in seen if rank == 0],
        "first_topk": [reference for reference, rank, _ in seen if rank < 5],
    }


def mean_of(lm: LM, used: tuple[Reference, ...]) -> Tensor:
    return torch.stack([said(lm, reference)[0] for reference in used]).mean(0)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("batch_tokens", [None, 1, 40])
def test_states_are_those_of_a_full_forward_pass(kind: str, batch_tokens: int | None) -> None:
    """Of every block, the last one included, at any token of rows of any length."""
    lm = tiny_lm(kind, n_layers=3)
    texts = ["The capital of France is", "Rome", "It rains in the north of Spain, and nobody knows why it does", "A b"]
    rows = [encode(lm, text).ids for text in texts]
    columns = [len(rows[0]) - 1, 0, 4, len(rows[3]) - 1]
    seen: dict[int, Tensor] = {}

    def last(part: list[int], state: Tensor) -> None:
        seen.update((i, state[row, columns[i]]) for row, i in enumerate(part))

    got = states(lm, [(-1, row) for row in rows], columns, batch_tokens=batch_tokens, last=last)
    with torch.no_grad():
        want = torch.stack([block_states(lm, row, column) for row, column in zip(rows, columns, strict=True)])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.stack([seen[i] for i in range(4)]), want[:, -1], atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_states_under_private_deltas() -> None:
    lm = tiny_lm("llama", n_layers=3)
    path, generator = lm.arch.path("mlp_out", 1), torch.Generator().manual_seed(0)
    shapes = ((lm.d_model, 1), (1, 80))
    deltas = [Delta({path: Factors(*(torch.randn(*shape, generator=generator) for shape in shapes))}) for _ in range(2)]
    ids = encode(lm, "The capital of France is").ids
    lanes = [1, -1, 0]
    got = states(lm, [(lane, ids) for lane in lanes], [len(ids) - 1] * 3, BatchedDeltas(lm.model, deltas))
    for row, lane in enumerate(lanes):
        with edited(lm.model, *([] if lane < 0 else [deltas[lane]])), torch.no_grad():
            want = block_states(lm, ids, len(ids) - 1)
        torch.testing.assert_close(got[row], want, atol=1e-4, rtol=1e-4)
    assert float((got[0] - got[2])[1].norm()) > 1e-2


@pytest.mark.parametrize("case", FOND, ids=lambda case: case[0])
def test_the_ladder_of_recall(case: Case) -> None:
    """A rule that leaves fewer than `n_min` gives way to the next: greedy, first_top1, first_topk, the best ranked."""
    lm, answer = fond_of(*case), case[1]
    found = references(answer, ALL)
    passed = naive_counts(lm, found)
    n = {rule: len(passed[rule]) for rule in RECALLS}
    assert 0 < n["greedy"] <= n["first_top1"] < n["first_topk"] < len(found)
    reached = set()
    for n_min in (n["greedy"], n["greedy"] + 1, n["first_top1"], n["first_top1"] + 1, n["first_topk"] + 1):
        want = next((rule for rule in RECALLS if n[rule] >= n_min), "best_ranked")
        config = AnchorConfig(n_min=n_min, n_max=48)
        anchor = position(lm, request_of(answer), None, Pool(found), NOTHING, config)
        assert (anchor.recall, anchor.asked, anchor.known) == (want, len(found), n["greedy"])
        if want != "best_ranked":
            assert set(anchor.used) == set(passed[want])  # nothing that was not recalled
        else:
            ranks = sorted(said(lm, reference)[1] for reference in found)
            assert sorted(said(lm, reference)[1] for reference in anchor.used) == ranks[:n_min]
        assert anchor.mean is not None
        assert anchor.n == len(anchor.used)
        torch.testing.assert_close(anchor.mean, mean_of(lm, anchor.used), atol=1e-4, rtol=1e-4)
        reached.add(want)
    assert reached >= {"greedy", "first_topk", "best_ranked"}
    assert "first_top1" in reached or n["greedy"] == n["first_top1"]
    for rule in RECALLS[1:]:  # where the ladder begins is the user's to say
        config = AnchorConfig(n_min=1, n_max=48, recall=rule)
        anchor = position(lm, request_of(answer), None, Pool(found), NOTHING, config)
        assert (anchor.recall, anchor.known) == (rule, n[rule])
        assert set(anchor.used) == set(passed[rule])


def test_a_planted_prompt_that_is_not_recalled_is_dropped() -> None:
    lm = fond_of("gpt2", "Rome", 4.0)
    known = naive_counts(lm, references("Rome", ALL))["greedy"]
    rest = [Reference(f"{word} was", "Rome", "odd") for word in (*SUBJECTS, "Apple", "Redmond", "Monday")]
    planted = next(reference for reference in rest if not said(lm, reference)[2])
    anchor = position(lm, request_of("Rome"), None, Pool([planted, *known]), NOTHING, AnchorConfig())
    assert set(anchor.used) == set(known)
    assert (anchor.asked, anchor.known, anchor.recall) == (len(known) + 1, len(known), "greedy")


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_anchor_is_the_mean_over_a_stratified_sample(kind: str) -> None:
    lm = tiny_lm(kind, n_layers=3)
    found = [*references("English tea", ALL), Reference("In the north they drink", "English tea", "rare")]
    config = AnchorConfig(n_max=12, n_min=12)
    pool = Pool(found)
    anchor = position(lm, request_of("English tea"), None, pool, NOTHING, config, keep_hidden=True)
    assert anchor.mean is not None
    assert anchor.hidden is not None
    assert anchor.mean.shape == (3, lm.d_model)
    assert (anchor.n, anchor.source) == (len(anchor.used), "multi_relation")
    assert 8 <= anchor.n <= 12
    assert max([r.relation for r in anchor.used].count(name) for name in ALL) <= 6
    torch.testing.assert_close(anchor.mean, mean_of(lm, anchor.used), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(anchor.hidden.mean(0), anchor.mean)
    again = position(lm, request_of("English tea"), None, Pool(reversed(found)), NOTHING, config)
    assert again.used == anchor.used
    assert again.mean is not None
    torch.testing.assert_close(again.mean, anchor.mean, atol=1e-6, rtol=1e-6)

    macro = position(lm, request_of("English tea"), None, pool, NOTHING, replace(config, macro_mean=True))
    groups = [tuple(r for r in macro.used if r.relation == name) for name in {r.relation for r in macro.used}]
    want = torch.stack([mean_of(lm, group) for group in groups]).mean(0)
    assert macro.used == anchor.used
    assert macro.mean is not None
    torch.testing.assert_close(macro.mean, want, atol=1e-4, rtol=1e-4)
    assert float((macro.mean - anchor.mean).norm()) > 1e-3


def test_how_many_the_model_is_asked_about() -> None:
    """`candidates`, though most of them are of one relation; of what it knows, half may be."""
    lm = fond_of("gpt2", "Rome", 6.0)
    found = [Reference(f"{a} of {b} is in", "Rome", "city") for a in SUBJECTS for b in SUBJECTS]
    found += references("Rome", ("capital",), 3)
    config = AnchorConfig(n_max=8, n_min=2, candidates=40)
    anchor = position(lm, request_of("Rome"), None, Pool(found), NOTHING, config)
    assert anchor.asked == 40
    assert anchor.known > 8
    assert [r.relation for r in anchor.used].count("city") == 4
    assert len(anchor.used) <= 7


SPAIN = EditRecord(
    EditRequest("1", "{} is located in", "The Space Needle", "Rome", "Seattle", "city"),
    (Probe("rewrite", "The Space Needle is located in", "Rome"), Probe("paraphrase", "Ulm is located in", "Rome")),
    {"target_new_id": "Q220"},
)


def test_no_anchor_sees_what_is_edited_or_scored() -> None:
    lm = tiny_lm("gpt2", n_layers=3)
    pool = Pool([*references("Rome", ALL), *(Reference(f"The Space Needle and {s}:", "Rome") for s in SUBJECTS)])
    config = AnchorConfig(n_max=48, n_min=24)
    anchor = position(lm, SPAIN.request, None, pool, Leaks.of([SPAIN]), replace(config, n_min=4))
    assert anchor.asked == 23
    assert anchor.source == "multi_relation"
    texts = {reference.text for reference in anchor.used}
    assert "Ulm is located in" not in texts
    assert not any("Space Needle" in text for text in texts)
    assert position(lm, SPAIN.request, None, pool, Leaks.of([SPAIN]), config).source == "in_context"
    own = Pool(references("Rome", ("city",), 6, case="1", answer_id="Q220"))
    leaks = Leaks.of([replace(SPAIN, probes=())])
    assert position(lm, SPAIN.request, "Q220", own, leaks, AnchorConfig()).source == "single_relation"
    strict = AnchorConfig(exclude_own_attribute=True)
    assert position(lm, SPAIN.request, "Q220", own, leaks, strict).source == "in_context"


def test_every_source() -> None:
    """Two relations, one, a looser name, the model told the fact, nothing."""
    lm, request = tiny_lm("llama", n_layers=3), request_of("Rome")
    pools: dict[str, list[Reference]] = {
        "multi_relation": references("Rome", ("city", "capital"), 2),
        "single_relation": references("Rome", ("city",), 4),
        "string_match": [*references("Rome", ("city",), 2), *references("The Rome.", ("capital",), 2)],
        "in_context": references("Rome", ("city",), 3),
        "none": references("Rome", ("city",), 3),
    }
    for source, found in pools.items():
        config = AnchorConfig(n_min=4, in_context=source != "none")
        anchor = position(lm, request, None, Pool(found), NOTHING, config, ("{}", "The meeting was. {}"))
        assert anchor.source == source
        assert anchor.used == () or set(anchor.used) == set(found)
        assert (anchor.mean is None) == (source == "none")
        assert anchor.card() == {
            "source": source,
            "n": {"none": 0, "in_context": 2}.get(source, len(found)),
            "relations": {"none": 0, "multi_relation": 2, "string_match": 2}.get(source, 1),
            "recall": None if source in ("none", "in_context") else "best_ranked",
            "asked": len(found) if anchor.used else 0,
            "known": 0,
        }
    assert position(lm, request, None, Pool([]), NOTHING, AnchorConfig(in_context=False)) == Anchor(None)


def test_an_id_of_another_name_counts_beside_looser_names() -> None:
    lm = tiny_lm("gpt2", n_layers=3)
    found = [*references("Roma", ("city",), 2, answer_id="Q220"), *references("Rome.", ("capital",), 2)]
    anchor = position(lm, request_of("Rome"), "Q220", Pool(found), NOTHING, AnchorConfig(n_min=4))
    assert anchor.source == "string_match"
    assert set(anchor.used) == set(found)


@pytest.mark.parametrize("kind", FAMILIES)
def test_in_context(kind: str) -> None:
    """The mean state at the end of "{prompt} {object}. {prompt}" over the contexts."""
    lm, request = tiny_lm(kind, n_layers=3), request_of("English tea")
    contexts = ["{}", "The meeting was. {}"]
    anchor = position(lm, request, None, Pool([]), NOTHING, AnchorConfig(), contexts)
    told = "The mother tongue of Danielle Darrieux is English tea. The mother tongue of Danielle Darrieux is"
    want = []
    for text in (told, f"The meeting was. {told}"):
        ids = encode(lm, text).ids
        with torch.no_grad():
            want.append(block_states(lm, ids, len(ids) - 1))
    assert anchor.mean is not None
    torch.testing.assert_close(anchor.mean, torch.stack(want).mean(0), atol=1e-5, rtol=1e-5)


def test_a_reference_longer_than_the_context_is_named() -> None:
    lm = tiny_lm("gpt2", n_layers=3, context=64)
    found = [*references("Rome"), Reference("It rains in " * 40 + "the city of", "Rome")]
    with pytest.raises(KeditError, match=r"^the anchors' reference 'It rains in .*': \d+ tokens, more than the 64 of"):
        position(lm, request_of("Rome"), None, Pool(found), NOTHING, AnchorConfig())


def test_cards_are_json() -> None:
    fields: Any = json.loads(json.dumps(Anchor(None).card()))
    assert fields["source"] == "none"
