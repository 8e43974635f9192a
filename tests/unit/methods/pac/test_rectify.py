"""PAC's trainable slices: dense masked training, step by step, and nothing else touched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.delta.apply import edited
from kedit.delta.biases import BiasChange
from kedit.delta.slices import Slices
from kedit.methods.pac import (
    Bias,
    Labelled,
    Part,
    Rectifier,
    Selection,
    Site,
    argmaxes,
    encode_request,
    labelled,
    sites,
)
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "{} plays", "Lionel Messi", "basketball for the Lakers"),
    EditRequest("3", "What is the twin city of Cologne?", None, "Paris"),
]
KINDS = ["gpt2", "gptj", "llama", "phi3", "opt"]


def batch_of(lm: LM, requests: list[EditRequest] = REQUESTS) -> Labelled:
    return labelled(lm, [encode_request(lm, request) for request in requests])


def draw(found: list[Site], seed: int) -> Selection:
    return Selection.random(found, nodes=4, contrast_nodes=2, generator=torch.Generator().manual_seed(seed))


class Dense:
    """Every feed-forward matrix with a gradient of its own, masked: what the released code does."""

    def __init__(self, lm: LM, found: list[Site], bias: Bias) -> None:
        self.lm = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
        self.found, self.bias = found, bias
        self.modules = dict(self.lm.model.named_modules())
        self.lm.model.requires_grad_(False)
        self.trained: list[nn.Parameter] = []
        for module in {self.modules[site.path]: None for site in found}:
            self.trained.append(module.weight)  # type: ignore[arg-type]
            if bias != "none" and module.bias is not None:
                self.trained.append(module.bias)  # type: ignore[arg-type]
        for parameter in self.trained:
            parameter.requires_grad_(True)

    def mask(self, selection: Selection, *parts: Part) -> None:
        locality: dict[nn.Parameter, Tensor] = {p: torch.zeros_like(p, dtype=torch.bool) for p in self.trained}
        for site in self.found:
            module = self.modules[site.path]
            nodes = torch.cat([getattr(selection, part)[site] for part in parts])
            view = locality[module.weight] if weight(module).shape == module.weight.shape else locality[module.weight].T  # type: ignore[index]
            if site.kind == "value":
                view[:, nodes] = True
            else:
                view[nodes + site.offset] = True
            if module.bias in locality:  # type: ignore[operator]
                if site.kind != "value":
                    locality[module.bias][nodes + site.offset] = True  # type: ignore[index]
                elif self.bias == "code":
                    locality[module.bias][:] = True  # type: ignore[index]
        for parameter, mask in locality.items():
            assert parameter.grad is not None
            parameter.grad *= mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", ["code", "masked", "none"])
def test_slices_train_as_masked_dense_weights_do(kind: str, bias: Bias) -> None:
    """Three selections, each with steps on T+ and on T- in turn, one Adam for all (specs/pac.md 2.5 and 2.6)."""
    lm = tiny_lm(kind, dtype=torch.float32)
    lm.model.requires_grad_(False)
    found = sites(lm)
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    dense, slim = Dense(lm, found, bias), Rectifier(lm, bias)
    batch = batch_of(lm)
    other = batch.relabelled(argmaxes(lm, batch))
    big = torch.optim.Adam(dense.trained, lr=1e-3)
    small: torch.optim.Optimizer | None = None
    losses: list[tuple[float, float]] = []
    for seed in range(3):
        selection = draw(found, seed)
        slim.take(selection, small)
        small = small or torch.optim.Adam(slim.parameters(), lr=1e-3)
        parts: list[Part] = ["critical", "contrast"]
        for part in parts * 2:
            wanted = batch if part == "critical" else other
            big.zero_grad(set_to_none=False)
            full = wanted.loss(dense.lm)
            full.backward()
            dense.mask(selection, part)
            big.step()
            small.zero_grad(set_to_none=False)
            with slim.installed():
                loss = wanted.loss(lm)
            loss.backward()
            slim.mask(part)
            small.step()
            losses.append((float(full.detach()), float(loss.detach())))
    one, two = torch.tensor(losses).T
    torch.testing.assert_close(one, two, atol=2e-5, rtol=2e-5)
    assert one[0] > one[8]  # the first and the last step on T+ but one
    delta = slim.delta()
    for path in {site.path for site in found}:
        moved = weight(dense.modules[path]) - weight(lm.model.get_submodule(path))
        torch.testing.assert_close(delta.of_kind(Slices)[path].dense(), moved.detach(), atol=3e-5, rtol=1e-3)
        assert moved.abs().max() > 1e-3
        own, theirs = lm.model.get_submodule(path).bias, dense.modules[path].bias
        if (shift := delta.of_kind(BiasChange).get(path)) is not None:
            torch.testing.assert_close(shift.change, (theirs - own).detach(), atol=3e-5, rtol=1e-3)  # type: ignore[operator]
        elif own is not None:
            assert torch.equal(own, theirs)  # type: ignore[arg-type]
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert all(p.grad is None for p in lm.model.parameters())
    with slim.installed():
        during = batch.logits(lm).detach()
    with edited(lm.model, delta):
        torch.testing.assert_close(batch.logits(lm), during, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_lines_of_the_dense_ones(kind: str) -> None:
    lm = tiny_lm(kind, dtype=torch.float64)
    lm.model.requires_grad_(False)
    found = sites(lm)
    dense, slim, batch = Dense(lm, found, "code"), Rectifier(lm, "code"), batch_of(lm)
    slim.take(draw(found, 0))
    batch.loss(dense.lm).backward()
    with slim.installed():
        batch.loss(lm).backward()
    for site in found:
        module = dense.modules[site.path]
        whole: Any = module.weight.grad if weight(module).shape == module.weight.shape else module.weight.grad.T  # type: ignore[union-attr]
        lines = whole[:, slim.index[site]].T if site.kind == "value" else whole[slim.index[site] + site.offset]
        found_grad = slim.lines.gradients()[site]
        torch.testing.assert_close(found_grad, lines.float(), atol=1e-6, rtol=1e-4)
        assert lines.abs().max() > 1e-6


def test_an_unselected_part_stays_where_it_is() -> None:
    """Without a step on T-, its nodes do not move (lambda = 0), and a node selected once keeps its change."""
    lm = tiny_lm("llama")
    lm.model.requires_grad_(False)
    found, slim, batch = sites(lm), Rectifier(lm), batch_of(lm)
    first = draw(found, 0)
    slim.take(first)
    adam = torch.optim.Adam(slim.parameters(), lr=1e-3)
    with slim.installed():
        batch.loss(lm).backward()
    slim.mask("critical")
    adam.step()
    kept = {}
    for site in found:
        moved = slim.values[site].detach().abs().amax(1) > 0
        assert torch.equal(slim.index[site][moved], first.critical[site])
        kept[site] = slim.values[site].detach()[moved].clone()
    slim.take(draw(found, 1), adam)
    for site in found:
        rows = torch.searchsorted(slim.index[site], first.critical[site])
        assert torch.equal(slim.values[site].detach()[rows], kept[site])
        assert slim.values[site].detach().abs().sum() == kept[site].abs().sum()
