"""Which layers are aligned: the choice, what is refused, and the probe that `auto` follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kedit.covariance import StatsConfig
from kedit.errors import KeditError
from kedit.methods import MEMIT, ROME, STEAM
from kedit.methods.steam import AlignConfig, AnchorConfig, LayerProbe, align_layers, best_window, probe, telling
from kedit.methods.steam.probe import Within
from tests.support.small_runs import configured
from tests.support.steam_cases import Given, records, run, world
from tests.support.tiny_models import tiny_lm
from tests.unit.methods.locate_then_edit.test_multi_layer import TEXTS


def never() -> list[float]:
    raise AssertionError("the probe was asked")


@pytest.mark.parametrize(
    ("n_layers", "first", "last"), [(28, 12, 19), (32, 13, 22), (48, 20, 33), (30, 12, 21), (10, 4, 7)]
)
def test_mid(n_layers: int, first: int, last: int) -> None:
    """The layers of GPT-J and Qwen2, Llama-3, GPT-2 XL (specs/steam.md 5)."""
    assert align_layers("mid", n_layers, 3, never) == list(range(first, last + 1))
    assert align_layers("mid", n_layers, first + 1, never) == list(range(first + 2, last + 1))


def test_mid_above_a_late_edit() -> None:
    """All layers above the edited one but the last, and the last where there is no other."""
    assert align_layers("mid", 12, 8, never) == [9, 10]
    assert align_layers("mid", 12, 9, never) == [10]
    assert align_layers("mid", 12, 10, never) == [11]
    for n in range(2, 100):
        for edited in range(n - 1):
            layers = align_layers("mid", n, edited, never)
            assert layers == list(range(layers[0], layers[-1] + 1))
            assert edited < layers[0] <= layers[-1] < n
            middle = [layer for layer in range(n) if 4 * n <= 10 * layer <= 7 * n]
            if middle[-1] > edited:
                assert layers == [layer for layer in middle if layer > edited], n


@pytest.mark.parametrize(
    ("wanted", "edited", "message"),
    [
        ([5, 6], 5, "layer 5 is not above the edited layer 5; what is edited there reaches the answer from layer 6 on"),
        ([2, 9], 5, "layer 2 is not above the edited layer 5"),
        ([-1], 5, "layer -1 is not above"),
        ([7, 12], 5, "12 does not exist; the model's layers are 0 to 11"),
        ([], 5, "the list is empty; name layers, or use mid or auto"),
        ("mid", 11, "the edited layer 11 is the last one; no layer above it is left"),
        ("auto", 11, "the edited layer 11 is the last one"),
        ([11], 11, "the edited layer 11 is the last one"),
    ],
)
def test_what_is_refused(wanted: Any, edited: int, message: str) -> None:
    with pytest.raises(KeditError, match=r"^model\.align\.layers: ") as caught:
        align_layers(wanted, 12, edited, never)
    assert message in str(caught.value)


def test_a_list_is_taken_in_order_and_once() -> None:
    assert align_layers([9, 6, 9], 12, 5, never) == [6, 9]
    assert align_layers([6], 12, 5, never) == [6]


def test_what_tells_objects_apart() -> None:
    """Margins within relations above chance, where there are any; else the centred ones."""
    probes = [LayerProbe(i, 0.9, 0.1 * i, 0.5 + margin, 0.5) for i, margin in enumerate((0.25, 0.5, 0.0))]
    assert telling(probes, []) == [0.25, 0.5, 0.0]
    inside = [Within(i, margin, chance) for i, (margin, chance) in enumerate(((0.5, 0.5), (0.25, 0.5), (0.5, 0.25)))]
    assert telling(probes, inside) == [0.0, -0.25, 0.25]


def test_the_best_window() -> None:
    margins = [0.9, 0.9, 0.1, 0.2, 0.3, 0.1, 0.4, 0.5, 0.3, 0.1, 0.1, 0.9]
    assert best_window(margins, first=2) == [6, 7, 8]  # a quarter of 12; not the last, nothing below `first`
    assert best_window(margins, first=0) == [0, 1, 2]
    assert best_window(margins, first=7) == [7, 8, 9]
    assert best_window(margins, first=9) == [9, 10]
    assert best_window(margins, first=11) == [11]
    assert align_layers("auto", 12, 1, lambda: margins) == [6, 7, 8]


@pytest.mark.parametrize("n_layers", range(2, 20))
def test_a_window_lies_above_the_edit(n_layers: int) -> None:
    every = torch.randn(n_layers, generator=torch.Generator().manual_seed(n_layers)).tolist()
    for first in range(1, n_layers):
        window = best_window(every, first)
        assert window == list(range(window[0], window[-1] + 1))
        assert first <= window[0]
        assert window[-1] <= max(first, n_layers - 2)
        assert len(window) <= max(1, round(n_layers / 4))
        rivals = [range(s, s + len(window)) for s in range(first, n_layers - len(window))]
        assert all(sum(every[i] for i in w) <= sum(every[i] for i in window) + 1e-9 for w in rivals)


def naive_probe(objects: list[Tensor], layer: int, centred: bool) -> tuple[float, float]:
    """Mean own and other cosine of one layer, one pair of vectors after the other."""
    states = [[state.double() for state in states[:, layer]] for states in objects if len(states) > 1]
    means = [torch.stack(rows).mean(0) for rows in states]
    centre = torch.stack(means).mean(0) if centred else torch.zeros_like(means[0])
    own, other = [], []
    for i, rows in enumerate(states):
        mine, theirs = [], []
        for j, h in enumerate(rows):
            rest = torch.stack([x - centre for k, x in enumerate(rows) if k != j]).mean(0)
            mine.append(float(F.cosine_similarity(h - centre, rest, dim=0)))
            for k, mean in enumerate(means):
                if k != i:
                    theirs.append(float(F.cosine_similarity(h - centre, mean - centre, dim=0)))
        own.append(math.fsum(mine) / len(mine))
        other.append(math.fsum(theirs) / len(theirs))
    return math.fsum(own) / len(own), math.fsum(other) / len(other)


def test_the_probe_equals_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(5, 12, generator=generator)
    objects = []
    for n in (4, 2, 1, 7, 3):  # the object with one reference is left out
        of_object = torch.randn(5, 12, generator=generator)
        objects.append(shared + 0.5 * of_object + 0.7 * torch.randn(n, 5, 12, generator=generator))
    found = probe(objects)
    assert [p.layer for p in found] == list(range(5))
    for p in found:
        assert (p.own, p.other) == pytest.approx(naive_probe(objects, p.layer, False), abs=1e-12)
        assert (p.own_centred, p.other_centred) == pytest.approx(naive_probe(objects, p.layer, True), abs=1e-12)
        assert p.margin == p.own - p.other > 0
        assert p.margin_centred == p.own_centred - p.other_centred > p.margin
    with pytest.raises(ValueError, match="at least two objects"):
        probe([objects[0], objects[2]])


SMALL: dict[str, Any] = {"v_num_grad_steps": 4, "contexts": TEXTS, "stats": StatsConfig(tokens=400), "lanes": 2}


def two_objects() -> Given:
    """As `records`, with references for the second object too."""
    first, second, third = records()
    more = {"attribute_prompts": [f"{name} is located in" for name in ("Ulm", "Cairo", "Redmond", "Berlin", "Honda")]}
    return Given([first, second, type(third)(third.request, third.probes, more)], world())


@pytest.mark.parametrize("editor", ["ROME", "MEMIT"])
def test_auto(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window of the probe over the run's own anchors, above the edited layers; it is written down."""
    method = configured(ROME, layer=1, **SMALL) if editor == "ROME" else configured(MEMIT, layers=[1, 2], **SMALL)
    module = STEAM(method, AnchorConfig(n_min=3), AlignConfig(layers="auto"))
    lm = tiny_lm("llama", n_layers=9, d_model=16, d_ff=40)
    batches = run(module, lm, two_objects())
    assert module.bank is not None
    edited = method.edited_layers[-1]
    assert module.layers == best_window(module.bank.telling(), edited + 1)
    assert module.describe()["aligned_layers"] == module.layers
    assert len(module.layers) == 2
    for batch in batches:
        for outcome in batch.outcomes:
            assert outcome.error is None
            assert outcome.info["anchor"]["cosine"]["last"] > outcome.info["anchor"]["cosine"]["first"] - 1e-3

    def other(objects: Any) -> list[LayerProbe]:
        return [LayerProbe(i, 0.0, 0.0, float(i in (5, 6)), 0.0) for i in range(9)]

    monkeypatch.setattr("kedit.methods.steam.bank.probe", other)
    module = STEAM(configured(ROME, layer=1, **SMALL), AnchorConfig(n_min=3), AlignConfig(layers="auto"))
    run(module, tiny_lm("llama", n_layers=9, d_model=16, d_ff=40), two_objects())
    assert module.layers == [5, 6]


def test_auto_needs_two_objects() -> None:
    module = STEAM(configured(ROME, layer=1, **SMALL), align=AlignConfig(layers="auto"))
    with pytest.raises(KeditError, match="the anchor probe needs two objects with references, this run has 1; give"):
        run(module, tiny_lm("llama", n_layers=9, d_model=16, d_ff=40), Given(records(), world()))


@pytest.mark.parametrize(
    ("layers", "message"), [([1], "layer 1 is not above"), ([4], "4 does not exist"), ([], "the list is empty")]
)
def test_layers_are_checked_before_anything_is_computed(
    layers: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(STEAM, "start", lambda self: pytest.fail("the run began"))
    module = STEAM(configured(ROME, layer=1, **SMALL), align=AlignConfig(layers=layers))
    with pytest.raises(KeditError, match=f"model.align.layers: .*{message}"):
        run(module, tiny_lm("gpt2"), Given(records()))
