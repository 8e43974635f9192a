"""PAC's runs as a module: what they may touch, requests one after another, and edits that fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.pac import ContrastConfig, Labelled, Selection, TraceConfig, TrainConfig, encode_request
from tests.support.pac_runs import REQUESTS, TRAIN, dense, kept_choices, pac, run, same, small
from tests.unit.methods.locate_then_edit.test_multi_layer import bits

chosen = pytest.fixture(kept_choices)

# -- what a run may touch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize(
    "train",
    [
        TRAIN,
        replace(TRAIN, retrace=2, bias="code"),
        replace(TRAIN, shared_adam=True, bias="code"),
        replace(TRAIN, objective="joint", bias="masked"),
    ],
)
def test_nothing_else_is_touched(kind: str, train: TrainConfig, chosen: list[Selection]) -> None:
    """After a sequential run, all that is not a selected node (or its bias) has the bits it had before."""
    lm = small(kind)
    before = bits(lm)
    run(pac(regime="sequential", train=train), lm, batch_size=3)
    after = bits(lm)
    nodes: dict[str, set[int]] = {}
    for selection in chosen:
        for part in (selection.critical, selection.contrast):
            for site, own in part.items():
                nodes.setdefault(site.path, set()).update(own.tolist())
    assert len(chosen) == 2 * (3 if train.retrace else 1)
    free: set[str] = set()
    for path, own in nodes.items():
        moved = (after[f"{path}.weight"] != before[f"{path}.weight"]).any(0 if path[-3:] in ("out", "roj") else 1)
        if path.endswith(("fc_in", "up_proj")):
            moved = (after[f"{path}.weight"] != before[f"{path}.weight"]).any(1)
        assert set(moved.nonzero()[:, 0].tolist()) == own, path
        free.add(f"{path}.weight")
        if kind == "gptj" and train.bias != "none":
            changed = set((after[f"{path}.bias"] != before[f"{path}.bias"]).nonzero()[:, 0].tolist())
            whole = set(range(16)) if train.bias == "code" else set()
            assert changed == (own if path.endswith("fc_in") else whole), path
            free.add(f"{path}.bias")
    rest = [name for name in before if name not in free]
    assert len(rest) > 10
    assert all(torch.equal(before[name], after[name]) for name in rest)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("regime", ["single", "batch"])
def test_weights_are_left_as_they_were(regime: Any) -> None:
    lm = small()
    before = bits(lm)
    (batch, *_) = run(pac(regime=regime), lm)
    assert any(change.any() for change in dense(batch.deltas[0]).values())
    assert all(torch.equal(value, before[name]) for name, value in bits(lm).items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize(
    ("contrast", "parts"),
    [
        (ContrastConfig(0.0), ["critical"]),
        (ContrastConfig(), ["critical", "contrast"]),
        (ContrastConfig(merge=False), ["critical"]),
        (ContrastConfig(theta="instead"), ["critical", "contrast"]),
        (ContrastConfig(theta="instead", merge=False), ["critical"]),
    ],
)
def test_which_sides_a_delta_has(contrast: ContrastConfig, parts: list[str], chosen: list[Selection]) -> None:
    """T- is left alone without lambda, and out of the delta without `merge`."""
    (batch,) = run(pac(contrast=contrast), small())
    (selection,) = chosen
    for site in selection.critical:
        nodes = torch.cat([getattr(selection, part)[site] for part in parts]).sort().values
        change = dense(batch.deltas[0])[site.path]
        moved = change.abs().amax(0 if site.kind == "value" else 1) > 0
        assert torch.equal(moved.nonzero()[:, 0], nodes)


def test_instead_keeps_the_sides_apart() -> None:
    """With Theta' literally, T+ ends where it ends without a contrastive term; with `updated` it does not."""
    deltas = {}
    train = replace(TRAIN, stop=False)
    for name, contrast in {
        "none": ContrastConfig(0.0),
        "instead": ContrastConfig(theta="instead", merge=False),
        "updated": ContrastConfig(merge=False),
    }.items():
        (batch,) = run(pac(contrast=contrast, train=train), small())
        deltas[name] = batch.deltas[0]
    assert same(deltas["none"], deltas["instead"])
    assert not same(deltas["none"], deltas["updated"])


@pytest.mark.parametrize("theta", ["updated", "instead"])
@pytest.mark.parametrize("merge", [True, False])
def test_the_loss_that_is_told_is_that_of_the_delta(theta: Any, merge: bool) -> None:
    lm = small()
    (batch,) = run(pac(contrast=ContrastConfig(theta=theta, merge=merge, weight=1.0)), lm)
    delta = batch.deltas[0]
    assert delta is not None
    with torch.no_grad(), edited(lm.model, delta):
        for request, outcome in zip(REQUESTS, batch.outcomes, strict=True):
            text = encode_request(lm, request)
            logits = lm.model(torch.tensor([text.ids])).logits[0, text.n_prompt - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(text.target))
            assert outcome.info["loss"] == pytest.approx(float(loss), abs=1e-4)
            assert outcome.info["answered"] == (logits.argmax(-1).tolist() == list(text.target))


def test_the_sum_is_what_was_committed() -> None:
    """Weights after a sequential run are the unedited ones and the one delta that is kept, written once."""
    lm, module = small(), pac(regime="sequential")
    batches = run(module, lm, batch_size=2)
    (total,) = module.deltas
    for path, change in dense(total).items():
        parts = [dense(batch.deltas[0])[path] for batch in batches]
        torch.testing.assert_close(change, torch.stack(parts).sum(0))
    fresh = small()
    with edited(fresh.model, total):
        assert all(torch.equal(value, bits(lm)[name]) for name, value in bits(fresh).items())


# -- one request after another -----------------------------------------------------------------------------


def info(batches: list[EditBatch], key: str) -> list[Any]:
    return [outcome.info[key] for batch in batches for outcome in batch.outcomes]


def test_later_requests_see_earlier_changes() -> None:
    """With `scope: edit` the same request again is answered already; each on the unedited model it is not."""
    train = replace(TRAIN, passes=40, retrace=10)
    again = replace(REQUESTS[0], case_id="again")
    batches = run(pac(scope="edit", train=train), small(), [REQUESTS[0], again])
    assert info(batches, "answered") == [True, True]
    first, second = info(batches, "steps")
    assert second == 0 < first < 40
    batches = run(pac(scope="edit", train=train, regime="single"), small(), [REQUESTS[0], again])
    assert info(batches, "steps") == [first, first]
    assert same(batches[0].deltas[0], batches[1].deltas[0])
    batches = run(pac(scope="edit", train=train, regime="sequential"), small(), [REQUESTS[0], again], batch_size=1)
    assert info(batches, "steps") == [first, 0]


def test_single_requests_know_nothing_of_each_other() -> None:
    together, alone = run(pac(regime="single"), small()), run(pac(regime="single"), small(), REQUESTS[2:3])
    assert same(together[2].deltas[0], alone[0].deltas[0])
    assert not same(together[1].deltas[0], alone[0].deltas[0])


def test_an_edit_trains_only_its_own_nodes(chosen: list[Selection]) -> None:
    """`scope: edit`: a later request leaves the nodes of earlier ones as they are."""
    one, two = (run(pac(scope="edit"), small(), REQUESTS[:n])[0].deltas[0] for n in (1, 2))
    selection = chosen[-1]
    first, both = dense(one), dense(two)
    for site in selection.critical:
        own = torch.cat([selection.critical[site], selection.contrast[site]])
        moved = (both[site.path] != first[site.path]).any(0 if site.kind == "value" else 1)
        assert set(moved.nonzero()[:, 0].tolist()) <= set(own.tolist()), site.path
        assert moved.any()


@pytest.mark.parametrize("scope", ["edit", "batch"])
def test_a_failed_edit_is_undone_and_others_stay(scope: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One request's loss becomes NaN at its third step."""
    (whole,) = run(pac(scope="edit"), small(), [REQUESTS[0], REQUESTS[3]])
    lm = small()
    first = encode_request(lm, REQUESTS[1]).target[0]
    loss_of, calls = Labelled.loss_of, []

    def broken(self: Labelled, logits: Tensor) -> Tensor:
        if first in self.labels.tolist():
            calls.append(1)
            return loss_of(self, logits) * (torch.nan if len(calls) > 2 else 1.0)
        return loss_of(self, logits)

    monkeypatch.setattr(Labelled, "loss_of", broken)
    (batch,) = run(pac(scope=scope), lm, [REQUESTS[0], REQUESTS[1], REQUESTS[3]])
    errors = [outcome.error for outcome in batch.outcomes]
    failed = [error is not None for error in errors]
    assert all(error is None or error.startswith("the edit loss is nan after ") for error in errors)
    if scope == "edit":
        assert failed == [False, True, False]
        want = dense(whole.deltas[0])
        for path, change in dense(batch.deltas[0]).items():
            torch.testing.assert_close(change, want[path], atol=1e-4, rtol=1e-4)  # sums over more nodes round otherwise
        assert batch.outcomes[1].info["nodes"] is None
    else:
        assert failed == [True] * 3
        assert batch.deltas == [None]


@pytest.mark.parametrize("scope", ["edit", "batch"])
def test_an_edit_that_diverges_in_its_last_step_has_failed(scope: Any) -> None:
    """There is no further loss to say so, and yet no such change may be kept."""
    train = replace(TRAIN, lr=1e30, passes=1, mini_batch=5)
    lm = small()
    batches = run(pac(scope=scope, train=train, trace=TraceConfig(node_source="all"), regime="sequential"), lm)
    assert all(outcome.error is not None for outcome in batches[0].outcomes)
    assert all(torch.equal(value, bits(small())[name]) for name, value in bits(lm).items())
