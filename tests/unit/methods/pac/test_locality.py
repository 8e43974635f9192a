"""PAC's locality term: which prompts it keeps, the KL of their next tokens, and its gradient."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods.pac import LocalityConfig, LocalityTerm, Objective, Site
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRecord, EditRequest, Probe
from tests.support.pac_cases import asked, course_of, dense, draw, go, lines_of, sides_of, small


def fact(case: str, prompt: str, subject: str | None, target: str, *neighbors: str) -> EditRecord:
    probes = tuple(Probe("neighborhood", text, "x") for text in neighbors)
    return EditRecord(EditRequest(case, prompt, subject, target), probes)


RECORDS = [
    fact("a", "The capital of {} is", "France", "Rome"),
    fact("b", "{} was developed by", "Windows", "Toyota"),
    fact("c", "Who is the president?", None, "Bill Gates"),
]
FACTS = [
    fact("1", "The capital of {} is", "Egypt", "Cairo", "The capital of Japan is", "The capital of FRANCE is"),
    fact("2", "The language of {} is", "rome", "Latin", "It rains in"),
    fact("3", "{} was created by", "Honda Civic", "Honda", "Camry is produced by Toyota in", "The Space Needle is in"),
    fact("4", "The founder of Apple, not bill gates, was", None, "Jobs", "Nobody knows that "),
]
LEFT = {
    "The capital of Egypt is",
    "The capital of Japan is",
    "It rains in",
    "Honda Civic was created by",
    "The Space Needle is in",
    "Nobody knows that",
}


def everything(locality_term: LocalityTerm) -> tuple[list[tuple[int, ...]], Any]:
    """All general prompts and their reference (the cases named have none of their own)."""
    return locality_term.draw(["no such"], torch.Generator().manual_seed(0))


def keeper_of(lm: LM, records: list[EditRecord] = RECORDS, seed: int = 0, **options: Any) -> LocalityTerm:
    return LocalityTerm(
        lm, LocalityConfig(**({"weight": 1.0, "prompts": 6, "others": 2} | options)), records, FACTS, seed
    )


def test_kept_prompts_name_nothing_of_the_run() -> None:
    lm = small()
    found, _ = everything(keeper_of(lm, prompts=50))
    assert {tuple(lm.encode(text)) for text in LEFT} == set(found)
    assert len(found) == len(LEFT)
    assert len(everything(keeper_of(lm, prompts=50, facts=4))[0]) == 4


def test_half_of_a_draw_is_of_other_subjects() -> None:
    """The record's prompt with subjects of other records and facts; records without a subject have none."""
    lm = small()
    subjects = ["Windows", "Egypt", "rome", "Honda Civic"]
    own = {tuple(lm.encode(f"The capital of {other} is")) for other in subjects}
    general = {tuple(lm.encode(text)) for text in LEFT}
    for seed in range(8):
        locality_term = keeper_of(lm, seed=seed)
        found, reference = locality_term.draw(["a"], torch.Generator().manual_seed(seed))
        assert len(found) == len(reference.tokens) == 2 + 4  # two others of at most three
        assert set(found[:2]) <= own
        assert set(found[2:]) <= general
    found, _ = keeper_of(lm).draw(["c"], torch.Generator().manual_seed(0))
    assert set(found) == general
    found, _ = keeper_of(lm, others=0).draw(["a", "b"], torch.Generator().manual_seed(0))
    assert set(found) == general
    assert not keeper_of(lm, RECORDS[2:])._own


def test_draws_can_be_repeated() -> None:
    lm = small()
    one, two = keeper_of(lm), keeper_of(lm)
    draws = [k.draw(["a", "b"], torch.Generator().manual_seed(s)) for s in (3, 4) for k in (one, two)]
    assert draws[0][0] == draws[1][0]
    assert draws[2][0] == draws[3][0]
    assert draws[0][0] != draws[2][0]
    for name in ("tokens", "logp", "rest"):
        assert torch.equal(getattr(draws[0][1], name), getattr(draws[1][1], name))
    others = [keeper_of(lm, seed=seed, others=1).draw(["a"], torch.Generator())[0][:1] for seed in range(8)]
    assert len({ids[0] for ids in others}) > 1


def changed(lm: LM) -> Delta:
    sides = sides_of(lm, lr=5e-2)
    go(course_of(lm, sides, asked(lm)), sides.take(draw(lm)))
    return sides.delta()


@torch.no_grad()
def next_token(lm: LM, texts: Sequence[tuple[int, ...]]) -> Tensor:
    """log p of what follows each text, one at a time, `[n, vocab]` float64."""
    return torch.stack([lm.model(torch.tensor([text])).logits[0, -1].double().log_softmax(-1) for text in texts])


def test_kl_over_all_tokens_is_the_full_one() -> None:
    """With one token as the rest it is the KL itself; with fewer it is that of the coarser distributions."""
    lm = small()
    delta = changed(lm)
    kls = {}
    for top in (599, 5000, 20, 3):
        texts, reference = everything(keeper_of(lm, top=top))
        before = next_token(lm, texts)
        with edited(lm.model, delta):
            after = next_token(lm, texts)
        full = (before.exp() * (before - after)).sum(1).mean()
        kls[top] = float(reference.kl(after.float()))
        assert float(reference.kl(before.float())) == pytest.approx(0, abs=1e-6)
        if top >= 599:
            assert kls[top] == pytest.approx(float(full), rel=1e-4)
            continue
        index = before.topk(top).indices
        coarse = 0.0
        for p, q, own in zip(before.exp(), after.exp(), index, strict=True):
            p, q = (torch.cat([x[own], x.sum()[None] - x[own].sum()]) for x in (p, q))
            coarse += float((p * (p / q).log()).sum()) / len(index)
        assert kls[top] == pytest.approx(coarse, rel=1e-4)
    assert 0 < kls[3] < kls[20] < kls[599]
    assert kls[599] > 0.01


@pytest.mark.parametrize("objective", ["alternate", "joint"])
def test_the_locality_term_reaches_top(objective: Objective) -> None:
    """Its weight times the KL of the drawn prompts is in the loss, and its gradient in that of T+."""
    lm = small()
    requests, sides = asked(lm), sides_of(lm)
    locality_term = keeper_of(lm, prompts=3, others=0)
    go(course_of(lm, sides, requests), sides.take(draw(lm)))
    found: dict[float, tuple[float, dict[Site, Tensor]]] = {}
    for keep_weight in (0.0, 7.0):
        generator = torch.Generator().manual_seed(5)
        options: dict[str, Any] = {
            "objective": objective,
            "locality": LocalityConfig(keep_weight),
            "generator": generator,
        }
        course = course_of(lm, sides, requests, 1, locality_term=locality_term if keep_weight else None, **options)
        sides.take(draw(lm)).zero_grad()
        loss = course.loss()
        assert loss is not None
        loss.backward()
        grads = {site: grad.clone() for site, grad in sides.critical.lines.gradients().items()}
        found[keep_weight] = (float(loss.detach()), grads)
    generator = torch.Generator().manual_seed(5)
    torch.randperm(len(requests), generator=generator)  # the pass
    texts, _ = locality_term.draw([], generator)
    before = next_token(lm, texts)
    with edited(lm.model, sides.delta()):
        after = next_token(lm, texts)
    kl = float((before.exp() * (before - after)).sum(1).mean())
    coarse = (found[7.0][0] - found[0.0][0]) / 7
    assert 0.5 * kl < coarse <= kl * (1 + 1e-4)

    whole = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    modules = dict(whole.model.named_modules())
    for path, change in dense(sides.delta()).items():
        weight(modules[path]).add_(change)
        modules[path].weight.requires_grad_(True)  # type: ignore[union-attr]
    new = torch.stack([whole.model(torch.tensor([t])).logits[0, -1].log_softmax(-1) for t in texts])
    kept = before.topk(64).indices
    logp, rest = new.gather(1, kept), torch.log1p(-new.gather(1, kept).exp().sum(1))
    p = before.gather(1, kept).exp().float()
    (-(p * logp).sum(1) - (1 - p.sum(1)) * rest).mean().mul(7).backward()
    for site, one in found[7.0][1].items():
        grad: Any = modules[site.path].weight.grad
        want = lines_of(site, grad, sides.critical.index[site])
        torch.testing.assert_close(one - found[0.0][1][site], want, atol=1e-4, rtol=5e-3)
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("others", [0, 2])
def test_no_prompt_is_left_to_keep(others: int) -> None:
    """All facts name what the run edits: said, and neither a traceback nor a mean of nothing."""
    with pytest.raises(KeditError, match=r"model\.locality"):
        LocalityTerm(
            small(),
            LocalityConfig(1.0, others=others),
            [fact("d", "The Nile is in", None, "Egypt")],
            [fact("1", "The capital of {} is", "Egypt", "Cairo")],
            0,
        )


@pytest.mark.parametrize("positions", [1, 3, 50])
def test_what_is_kept_at_several_positions(positions: int) -> None:
    """The reference holds the last tokens of every drawn prompt, in their order; a step compares the same places."""
    lm = small()
    locality_term = keeper_of(lm, positions=positions)
    prompts, reference = locality_term.draw(["a", "b"], torch.Generator().manual_seed(1))
    rows = []
    for ids in prompts:
        logp = lm.model(torch.tensor([ids])).logits[0, -positions:].float().log_softmax(-1)
        rows.append(logp)
    wanted = torch.cat(rows)
    likeliest = wanted.topk(reference.tokens.shape[1], -1).values
    torch.testing.assert_close(wanted.gather(1, reference.tokens), reference.logp, rtol=0, atol=1e-4)
    torch.testing.assert_close(likeliest, reference.logp, rtol=0, atol=1e-4)
    sides = sides_of(lm)
    sides.take(draw(lm))
    course = course_of(
        lm, sides, asked(lm)[:2], locality_term=locality_term, locality=LocalityConfig(weight=1.0, positions=positions)
    )
    course.loss()
    assert course.terms["locality"] == pytest.approx(0.0, abs=1e-5)  # nothing has changed yet
