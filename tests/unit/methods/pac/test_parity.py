"""PAC's `parity` against the released code: dense, in float64, with masked gradients and one Adam."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.methods import PAC
from kedit.methods.pac import ContrastConfig, LocalityConfig, Selection, TraceConfig, encode_request, parity_train
from kedit.model.lm import LM
from tests.support.pac_runs import REQUESTS, TRACE, dense, kept_choices, run, same, small

chosen = pytest.fixture(kept_choices)

NODES, BOTTOM, LAMBDA = 5, 1, 0.1
MODULES = {"llama": ("model.layers", "up_proj", "down_proj"), "gptj": ("transformer.h", "fc_in", "fc_out")}


def released(lm: LM, kind: str, orders: list[list[int]]) -> tuple[dict[str, Tensor], list[dict[str, list[int]]]]:
    """specs/pac.md 8, with whole matrices: the changes of all weights, and T+ (then T-) at every assessment.

    Args:
        lm: The unedited model.
        kind: Its family.
        orders: For every two passes, the order of the assessment and those of the passes.
    """
    model = copy.deepcopy(lm.model).double()
    model.requires_grad_(False)
    layers, name_in, name_out = MODULES[kind]
    paths = [f"{layers}.{i}.mlp.{name}" for i in range(2) for name in (name_in, name_out)]
    matrices: dict[str, Any] = {path: model.get_submodule(path) for path in paths}
    trained = [p for m in matrices.values() for p in (m.weight, m.bias) if p is not None]
    start = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in trained:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(trained, lr=1e-5)
    texts = [encode_request(lm, request) for request in REQUESTS]

    def logits(i: int) -> Tensor:
        return model(torch.tensor([texts[i].ids])).logits[0, texts[i].n_prompt - 1 : -1]

    with torch.no_grad():
        original = [logits(i).argmax(-1) for i in range(len(texts))]

    def gradient(some: list[int], of_original: bool) -> None:
        """The mean over all tokens of a mini-batch."""
        adam.zero_grad(set_to_none=False)
        labels = [original[i] if of_original else torch.tensor(texts[i].target) for i in some]
        loss = torch.nn.functional.cross_entropy(torch.cat([logits(i) for i in some]), torch.cat(labels))
        ((LAMBDA if of_original else 1.0) * loss).backward()

    def in_twos(order: list[int]) -> list[list[int]]:
        return [order[i : i + 2] for i in range(0, len(order), 2)]

    def assess(order: list[int]) -> dict[str, list[int]]:
        sums = {path: torch.zeros_like(m.weight) for path, m in matrices.items()}
        for some in in_twos(order):
            gradient(some, of_original=False)
            for path, m in matrices.items():
                sums[path] += m.weight.grad
        ranks = {}
        for path, total in sums.items():
            g = total.T if path.endswith(name_in) else total  # [D, M]
            z = (g - g.mean(1, keepdim=True)) / g.std(1, keepdim=True)
            ranks[path] = z.abs().mean(0).argsort(descending=True).tolist()
        return ranks

    def step(nodes: dict[str, list[int]]) -> None:
        for path, m in matrices.items():
            locality = torch.zeros(40, dtype=torch.bool)
            locality[nodes[path]] = True
            if path.endswith(name_in):
                m.weight.grad[~locality] = 0
                if m.bias is not None:
                    m.bias.grad[~locality] = 0
            else:
                m.weight.grad[:, ~locality] = 0  # the bias of a value matrix is trained whole
        adam.step()

    found, todo = [], list(orders)
    for _ in range(6):
        ranks = assess(todo.pop(0))
        critical = {path: rank[:NODES] for path, rank in ranks.items()}
        contrast = {path: rank[-BOTTOM:] for path, rank in ranks.items()}
        found += [critical, contrast]
        for _ in range(2):
            for some in in_twos(todo.pop(0)):
                gradient(some, of_original=False)
                step(critical)
                gradient(some, of_original=True)
                step(contrast)
    assert not todo
    return {name: p.detach() - start[name] for name, p in model.named_parameters()}, found


@pytest.mark.parametrize("kind", ["gptj", "llama"])
def test_parity(kind: str, chosen: list[Selection], monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve passes, six assessments: every weight as whole masked matrices and one Adam leave it."""
    orders: list[list[int]] = []
    shuffle = torch.randperm

    def drawn(n: int, **options: Any) -> Tensor:
        order = shuffle(n, **options)
        if options.get("generator") is not None:
            orders.append(order.tolist())
        return order

    monkeypatch.setattr(torch, "randperm", drawn)
    lm = small(kind)
    (batch,) = run(PAC(parity=True, trace=TraceConfig(nodes=NODES, contrast_nodes=BOTTOM)), lm)
    monkeypatch.undo()
    assert [outcome.info["steps"] for outcome in batch.outcomes] == [12] * 5
    assert len(orders) == 18
    assert len({tuple(order) for order in orders}) > 12
    moved, nodes = released(lm, kind, orders)
    traced = [part for selection in chosen for part in (selection.critical, selection.contrast)]
    mine = [{site.path: own.tolist() for site, own in part.items()} for part in traced]
    assert mine == [{path: sorted(own) for path, own in part.items()} for part in nodes]
    assert len({str(part) for part in mine}) > 3, "the paths never changed"

    found = dense(batch.deltas[0])
    assert len(found) == (8 if kind == "gptj" else 4)
    for name, want in moved.items():
        change = found.pop(name if name.endswith("bias") else name.removesuffix(".weight"), torch.zeros(1)).double()
        torch.testing.assert_close(change.expand_as(want), want, atol=3e-8, rtol=0)  # of changes of 1e-5 a step
        assert change.abs().max() > 3e-4 or not want.any()
    assert not found


def test_parity_is_a_set_of_options() -> None:
    """`parity` is `parity_train()` but for how the assessment goes through the requests."""
    (one,) = run(PAC(parity=True, trace=TRACE, contrast=ContrastConfig(0.0)), small(), REQUESTS[:1])
    without = PAC(train=parity_train(), trace=TRACE, contrast=ContrastConfig(0.0), locality=LocalityConfig(0.0))
    (two,) = run(without, small(), REQUESTS[:1])
    assert same(one.deltas[0], two.deltas[0])
