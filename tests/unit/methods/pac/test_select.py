"""From nodes' scores to T+ and T-: ties, complete paths against brute force, controls."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from kedit.errors import KeditError
from kedit.methods.pac import Scores, Selection, Site, TraceConfig, layer_profile, select
from kedit.methods.pac.tracing.select import k_best


def site(layer: int, kind: str, width: int = 6) -> Site:
    return Site(f"layers.{layer}.{kind}", layer, kind, 1 if kind == "value" else 0, width, 4)  # type: ignore[arg-type]


def some_scores(layers: int = 2, width: int = 6, seed: int = 0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    found = [site(layer, kind, width) for layer in range(layers) for kind in ("key", "value")]
    return {one: torch.rand(width, generator=generator) for one in found}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounded", [False, True])
def test_the_best_sums_are_those_of_brute_force(seed: int, rounded: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    lists = []
    for n in (4, 1, 3, 5, 2):
        entries = torch.rand(n, generator=generator, dtype=torch.float64).sort(descending=True).values
        lists.append(((entries * 4).round() / 4 if rounded else entries).tolist())  # rounded: equal sums
    every = list(product(*(range(len(entries)) for entries in lists)))

    def total(choice: tuple[int, ...]) -> float:
        return sum(entries[i] for entries, i in zip(lists, choice, strict=True))

    wanted = sorted(map(total, every), reverse=True)
    for k in (0, 1, 2, 17, len(every), 1000):
        found = k_best(lists, k)
        assert len(set(found)) == len(found) == min(k, len(every))
        torch.testing.assert_close([total(choice) for choice in found], wanted[:k])
        assert found == k_best(lists, k)


@pytest.mark.parametrize("tied", [False, True])
def test_nodes_on_the_best_complete_paths(tied: bool) -> None:
    scores = some_scores()
    selection = select(scores, TraceConfig(mode="kbest", nodes=7, contrast_nodes=2, tie_kv=tied))
    paths = [p for p in product(range(6), repeat=4) if not tied or (p[0] == p[1] and p[2] == p[3])]

    def total(path: tuple[int, ...]) -> float:
        return sum(float(value[i].double()) for value, i in zip(scores.values(), path, strict=True))

    paths.sort(key=total)
    critical = [{path[i] for path in paths[-7:]} for i in range(4)]
    low = [path for path in paths if all(node not in taken for node, taken in zip(path, critical, strict=True))][:2]
    for i, one in enumerate(scores):
        assert selection.critical[one].tolist() == sorted(critical[i])
        assert selection.contrast[one].tolist() == sorted({path[i] for path in low})


def test_equal_scores_go_to_the_first_nodes_and_never_to_both_ends() -> None:
    one = site(0, "key")
    values = {
        (1, 1, 1, 1, 1, 1): ([0, 1, 2], [3, 4]),
        (0, 2, 1, 1, 2, 1): ([1, 2, 4], [0, 3]),
        (5, 0, 0, 0, 0, 0): ([0, 1, 2], [3, 4]),
    }
    for value, (critical, contrast) in values.items():
        selection = select({one: torch.tensor(value).float()}, TraceConfig(nodes=3, contrast_nodes=2))
        assert (selection.critical[one].tolist(), selection.contrast[one].tolist()) == (critical, contrast)
        assert selection.critical[one].dtype == torch.int64


def test_tied_keys_and_values_share_their_nodes() -> None:
    scores = some_scores(layers=3)
    selection = select(scores, TraceConfig(nodes=2, contrast_nodes=1, tie_kv=True))
    for layer in range(3):
        key, value = site(layer, "key"), site(layer, "value")
        order = (scores[key] + scores[value]).argsort()
        assert selection.critical[key].tolist() == selection.critical[value].tolist() == sorted(order[-2:].tolist())
        assert selection.contrast[key].tolist() == selection.contrast[value].tolist() == order[:1].tolist()
    apart = select(scores, TraceConfig(nodes=2, contrast_nodes=1))
    assert any(apart.critical[one].tolist() != selection.critical[one].tolist() for one in scores)


def test_no_contrast_when_none_is_wanted() -> None:
    for mode in ("per_matrix", "kbest"):
        selection = select(some_scores(), TraceConfig(nodes=6, contrast_nodes=0, mode=mode))
        assert all(len(nodes) == 0 for nodes in selection.contrast.values())
        assert all(len(nodes) > 0 for nodes in selection.critical.values())


def test_controls() -> None:
    found = list(some_scores(width=40))

    def draw(seed: int) -> list[Tensor]:
        drawn = Selection.random(found, 15, 3, torch.Generator().manual_seed(seed))
        for one in found:
            critical, contrast = drawn.critical[one].tolist(), drawn.contrast[one].tolist()
            assert (len(critical), len(contrast), len({*critical, *contrast})) == (15, 3, 18)
            assert (critical, contrast) == (sorted(critical), sorted(contrast))
            assert max(critical) < 40
        return list(drawn.critical.values())

    first, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])
    whole = Selection.all(found)
    assert all(whole.critical[one].tolist() == list(range(40)) and len(whole.contrast[one]) == 0 for one in found)


def test_layer_profile() -> None:
    scores = {site(1, "value"): torch.arange(6.0), site(1, "key"): torch.ones(6), site(3, "key"): torch.zeros(6)}
    kinds, profile = layer_profile(scores, nodes=2)
    assert kinds == ["key", "value"]
    assert profile[0].tolist() == [1.0, 4.5]
    assert float(profile[1, 0]) == 0
    assert bool(profile[1, 1].isnan())


def test_wrong_options_are_named() -> None:
    for words, message in (
        ({"nodes": 0}, r"model\.trace\.nodes: 0 is less than 1"),
        ({"contrast_nodes": -1}, r"model\.trace\.contrast_nodes: -1 is less than 0"),
        ({"memory": 0.0}, r"model\.trace\.memory: 0 is not above 0"),
        ({"memory": float("nan")}, r"model\.trace\.memory: nan"),
    ):
        with pytest.raises(KeditError, match=message):
            TraceConfig(**words)  # type: ignore[arg-type]
    found = some_scores()
    for run in (
        lambda: select(found, TraceConfig(nodes=6, contrast_nodes=1)),
        lambda: Selection.random(list(found), 6, 1, torch.Generator()),
    ):
        with pytest.raises(
            KeditError, match=r"model\.trace\.nodes: 6 critical and 1 contrast nodes are more than the 6"
        ):
            run()
    with pytest.raises(KeditError, match=r"model\.trace\.nodes: 1296 paths take every node of layers\.0\.key"):
        select(found, TraceConfig(mode="kbest", nodes=6**4, contrast_nodes=1))
