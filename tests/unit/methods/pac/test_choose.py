"""How many nodes PAC chooses, whose learning rate is higher, and the profile of their scores."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from kedit.errors import KeditError
from kedit.methods.pac import Profile, Scores, Site, TraceConfig, choose, encode_request, labelled, layer_weights
from kedit.methods.pac.tracing.choose import size_of
from kedit.model.lm import LM
from tests.support.pac_cases import REQUESTS, lines_of, mean_nll, small


def fake(seed: int = 0, width: int = 30, layers: int = 3) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    found = [
        site
        for layer in range(layers)
        for site in (Site(f"{layer}.in", layer, "key", 0, width, 8), Site(f"{layer}.out", layer, "value", 1, width, 8))
    ]
    return {site: torch.rand(width, generator=generator) for site in found}


@pytest.mark.parametrize("seed", range(4))
def test_size_of_is_the_fewest(seed: int) -> None:
    """Against trying every size, and more for more."""
    scores, gains = fake(seed), fake(seed + 10)
    most, sizes = 12, []
    for coverage in (1e-6, 0.05, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0):
        total = []
        for n in range(1, most + 1):
            picked = [(sorted(range(30), key=lambda i: -float(s[i]))[:n], gains[site]) for site, s in scores.items()]
            total.append(sum(float(g[i]) ** 2 for nodes, g in picked for i in nodes))
        want = next(n for n, gain in enumerate(total, 1) if gain >= coverage * total[-1] * (1 - 1e-12))
        sizes.append(size_of(scores, gains, most, coverage))
        assert sizes[-1] == want
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1, most)
    assert len(set(sizes)) > 3


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize("score", ["zscore", "l2"])
def test_enough_takes_the_fewest_nodes_of_the_dense_gradient(kind: str, score: Any) -> None:
    lm = small(kind)
    batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS], per_edit=True)
    config, generator = TraceConfig(score=score, nodes=10), torch.Generator()
    whole, scores = choose(lm, [batch], config, generator)
    assert scores is not None
    model = LM(copy.deepcopy(lm.model), lm.tokenizer, lm.name)
    model.model.requires_grad_(True)
    texts = [encode_request(lm, request) for request in REQUESTS]
    mean_nll(model, texts, [text.target for text in texts], per_edit=True).backward()
    gains = []
    for site, value in scores.items():
        grad: Any = model.model.get_submodule(site.path).weight.grad
        nodes = lines_of(site, grad, value.argsort(descending=True)[:10])
        gains.append(nodes.double().square().sum(1))
    reached = torch.stack(gains).sum(0).cumsum(0)
    for coverage in (0.4, 0.8):
        want = next(n for n in range(1, 11) if reached[n - 1] >= coverage * reached[-1])
        fewer, _ = choose(lm, [batch], replace(config, coverage=coverage), generator)
        for site, nodes in fewer.critical.items():
            assert len(nodes) == want < 10
            assert set(nodes.tolist()) == set(scores[site].argsort(descending=True)[:want].tolist())
            assert set(nodes.tolist()) < set(whole.critical[site].tolist())
            assert torch.equal(fewer.contrast[site], whole.contrast[site])


def test_enough_of_more_nodes_than_there_are() -> None:
    lm = small()
    batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS])
    with pytest.raises(
        KeditError, match=r"^model\.trace\.nodes: 41 critical and 1 contrast nodes are more than the 40"
    ):
        choose(lm, [batch], TraceConfig(nodes=41, coverage=0.5), torch.Generator())


@pytest.mark.parametrize("nodes", [1, 4, 50])
def test_layer_weights_are_shares_of_the_peaks(nodes: int) -> None:
    scores = fake()
    weights = layer_weights(scores, nodes)
    peaks = {site: sum(sorted(s.tolist())[::-1][:nodes]) / min(nodes, 30) for site, s in scores.items()}
    for kind in ("key", "value"):
        own = [site for site in scores if site.kind == kind]
        assert sum(weights[site] for site in own) / len(own) == pytest.approx(1)
        for site in own:
            assert weights[site] / weights[own[0]] == pytest.approx(peaks[site] / peaks[own[0]])
    nothing = layer_weights({site: torch.zeros(30) for site in scores}, nodes)
    assert set(nothing.values()) == {1.0}


@pytest.mark.parametrize("width", [30, 150])
def test_profile_is_the_mean_over_traces(width: int) -> None:
    one, two, profile = fake(0, width), fake(1, width), Profile()
    profile.add(one)
    profile.add(two)
    kept = Profile()
    kept.load(copy.deepcopy(profile.state()))
    assert profile.traces == kept.traces == 2
    assert kept.rows() == profile.rows()
    rows = {(row["layer"], row["kind"], row["rank"]): row["score"] for row in profile.rows()}
    assert len(rows) == len(profile.rows()) == 6 * (1 + min(width, 100))
    for site, score in one.items():
        both = [sorted(s[site].tolist(), reverse=True) for s in (one, two)]
        assert rows[site.layer, site.kind, 0] == pytest.approx(sum(map(sum, both)) / (2 * width))
        for rank in range(1, min(width, 100) + 1):
            assert rows[site.layer, site.kind, rank] == pytest.approx((both[0][rank - 1] + both[1][rank - 1]) / 2)
        assert len(score) == width
    kept.add(one)
    assert profile.traces == 2
    assert profile.rows() != kept.rows()
