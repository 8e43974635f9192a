"""A gate that has opened in a text opens again more easily at its later tokens, and nowhere else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway, PathwayRouter
from kedit.delta.pathways import Pathways
from kedit.delta.serialization import load_delta, save_delta
from kedit.errors import KeditError
from kedit.methods.rep import AdapterConfig, AdapterTask, AdapterTrainer, closed_form, parity_config
from tests.support.device import DEVICE
from tests.support.random_gates import gated
from tests.support.tiny_models import tiny_lm
from tests.support.ways import both_ways  # noqa: F401 (every test runs in both)

D = 8


def gate(axis: int, hysteresis: float | None, step: float = 1.0) -> Pathway:
    """A gate whose logit is a unit key's entry at `axis`, its threshold 0.5; it moves a key along that axis."""
    read = torch.zeros(D)
    read[axis] = 1.0
    return Pathway(
        torch.zeros(1, D),
        torch.zeros(D, 1),
        offset=step * read,
        read=read,
        bias=torch.tensor(0.0),
        threshold=torch.tensor(0.5),
        hysteresis=None if hysteresis is None else torch.tensor(hysteresis),
    )


def keys(*logits: float, axis: int = 0) -> Tensor:
    """A text `[T, D]` of unit keys with these entries at `axis`, the rest in the last entry."""
    found = torch.zeros(len(logits), D)
    found[:, axis] = torch.tensor(logits)
    found[:, -1] = (1 - found[:, axis] ** 2).sqrt()
    return found


def moved(bank: PathwayRouter, texts: Tensor) -> list[list[bool]]:
    return (bank(texts) != texts).any(-1).tolist()


def test_later_tokens_of_the_same_text_open_again() -> None:
    texts = torch.stack([keys(0.4, 0.9, 0.4, 0.1, 0.35), keys(0.4, 0.4, 0.45, 0.1, 0.35)])
    assert moved(PathwayRouter([gate(0, None)]), texts) == [[False, True, False, False, False], [False] * 5]
    assert moved(PathwayRouter([gate(0, 0.25)]), texts) == [[False, True, True, False, True], [False] * 5]
    assert moved(PathwayRouter([gate(0, 0.0)]), texts) == moved(PathwayRouter([gate(0, None)]), texts)


def test_an_opening_lends_half_of_itself_at_most_the_hysteresis() -> None:
    bank = PathwayRouter([gate(0, 0.1)])
    assert moved(bank, keys(0.9, 0.41, 0.39)[None]) == [[True, True, False]]  # 0.1 of its 0.2
    assert moved(bank, keys(0.6, 0.46, 0.44)[None]) == [[True, True, False]]  # 0.05
    assert moved(bank, keys(0.6, 0.9, 0.6, 0.41)[None]) == [[True, True, True, True]]  # the widest counts


def test_what_opens_again_lends_nothing() -> None:
    bank = PathwayRouter([gate(0, 0.15)])
    assert moved(bank, keys(0.7, 0.42, 0.38, 0.42)[None]) == [[True, True, False, True]]
    assert moved(bank, keys(0.42, 0.38, 0.42, 0.7)[None]) == [[False, False, False, True]]


def test_keys_without_a_text_are_each_by_itself() -> None:
    assert moved(PathwayRouter([gate(0, 0.25)]), keys(0.9, 0.4, 0.4)) == [True, False, False]


def test_the_gates_of_a_bank_remember_each_for_itself() -> None:
    first, second = gate(0, 0.3, step=1.0), gate(1, 0.3, step=2.0)
    bank = PathwayRouter([first, second])
    bank.bar = 0.0
    text = torch.stack([keys(0.9)[0], keys(0.4, axis=1)[0], keys(0.4)[0], keys(0.9, axis=1)[0], keys(0.4, axis=1)[0]])
    steps = (bank(text[None]) - text)[0]
    assert steps[:, 0].tolist() == pytest.approx([1, 0, 1, 0, 0])
    assert steps[:, 1].tolist() == pytest.approx([0, 0, 0, 2, 2])
    alone = PathwayRouter([first, replace(second, hysteresis=None)])
    alone.bar = 0.0
    assert (alone(text[None]) - text)[0, :, 1].tolist() == pytest.approx([0, 0, 0, 2, 0])


def test_lanes_and_files_keep_it(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    own = [gated(lm, seed, threshold=0.6, hysteresis=1.5 + seed) for seed in range(2)]
    (path,) = own[0].of_kind(Pathways)
    ids = torch.randint(5, 500, (3, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with BatchedDeltas(lm.model, own).rows(torch.tensor([0, 1, -1])):
            got = lm.model(ids).logits
        for row, delta in enumerate([*own, Delta()]):
            with edited(lm.model, delta):
                torch.testing.assert_close(got[row], lm.model(ids[row : row + 1]).logits[0], atol=1e-4, rtol=1e-4)
        (lent,) = own[1].of_kind(Pathways)[path].adapters
        plain = Delta({path: Pathways((replace(lent, hysteresis=None),))})
        with edited(lm.model, plain):
            assert not torch.equal(got[1], lm.model(ids[1:2]).logits[0])
    save_delta(tmp_path, own[0], {"model_fingerprint": lm.fingerprint})
    loaded, _ = load_delta(tmp_path, lm)
    assert loaded.of_kind(Pathways)[path].adapters[0].tensors()["hysteresis"] == 1.5


def test_tokens_without_their_texts_are_refused() -> None:
    module = torch.nn.Linear(D, D).to(DEVICE)
    PathwayRouter([gate(0, 0.2)]).install(module)
    module(keys(0.9, 0.4)[None])
    with pytest.raises(KeditError, match=r"model\.adapter\.hysteresis: .* use 0"):
        module(keys(0.9, 0.4))


def task(later: int) -> AdapterTask:
    """One of random keys, that many of which come after the name, far from what opens a gate."""
    g = torch.Generator().manual_seed(0)
    k_star, direction = torch.randn(2, D, generator=g)
    positives, negatives, hard_negatives, held, held_negatives = (
        torch.randn(n, D, generator=g) for n in (6, 40, 3, 4, 20)
    )
    after = 0.3 * torch.randn(later, D, generator=g) - positives.mean(0)
    return AdapterTask(
        k_star, direction, k_star.clone(), positives, negatives, hard_negatives, held, held_negatives, after
    )


WAYS: list[dict[str, Any]] = [{}, {"gate": "mlp", "steps": 2}, {"threshold": 0.5}]


def made(t: AdapterTask, config: AdapterConfig) -> list[Pathway]:
    """Adapters made in both ways there are."""
    found = [*closed_form([t], config), *AdapterTrainer([t], config).pathways()]
    assert len(found) == 2
    assert all(pathway.tensors()["threshold"].isfinite() for pathway in found)
    return found


@pytest.mark.parametrize("config", WAYS)
def test_it_is_set_by_the_config(config: dict[str, Any]) -> None:
    for given in (0.0, 4.0):
        for pathway in made(task(5), AdapterConfig(**config, hysteresis=given)):
            assert (pathway.hysteresis is None) == (given == 0.0)
            assert pathway.hysteresis is None or pathway.hysteresis == given


@pytest.mark.parametrize("config", WAYS)
def test_a_calibrated_one_leaves_what_follows_the_name_alone(config: dict[str, Any]) -> None:
    """By one nat: whatever was seen before, no such token opens the gate, and with one nat more the nearest would."""
    t, own = task(30), AdapterConfig(**config, hysteresis=None)
    for pathway in made(t, own):
        lent = pathway.tensors()["hysteresis"]
        nearest = pathway.margin(t.later).max()
        assert lent >= 0
        if nearest < -1:
            torch.testing.assert_close(lent, -1 - nearest)
        else:
            assert lent == 0
    for pathway in made(replace(t, later=t.later[:0]), own):  # nothing follows: nothing is known
        assert pathway.hysteresis is None


def test_a_calibrated_one_is_never_negative() -> None:
    t = task(0)
    for pathway in made(replace(t, later=t.positives), AdapterConfig(hysteresis=None)):
        assert pathway.hysteresis == 0


def test_it_is_checked() -> None:
    assert parity_config().hysteresis == 0
    with pytest.raises(KeditError, match=r"model\.adapter\.hysteresis"):
        AdapterConfig(hysteresis=-1.0)
