"""Steps of fine-tuning against loops by hand in float64; lanes, bounds, stops; cached inputs against whole passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.parameters import ParameterChange
from kedit.methods.fine_tuning.all_parameters import AllParameters
from kedit.methods.fine_tuning.dense_changes import DenseChanges
from kedit.methods.fine_tuning.texts import Loss, Text, text_of
from kedit.methods.fine_tuning.tune_phase import Recipe, TunePhase
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.tiny_models import tiny_lm

KINDS = ("gpt2", "llama")
REQUESTS = (
    EditRequest("1", "The capital of {} is", "France", "Rome in Italy"),
    EditRequest("2", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("3", "The mother tongue of {} is", "Danielle Darrieux", "English tea"),
)


def texts_of(lm: LM, loss: Loss = "target_new", eos: bool = False) -> list[Text]:
    return [text_of(lm, request, loss, eos) for request in REQUESTS]


def trained(phase: TunePhase) -> list[float]:
    """Makes the steps of a phase, as Lightning does; the losses."""
    losses = []
    with phase.weights.opened():
        optimizer = phase.optimizer()
        for _ in range(phase.steps):
            loss = phase.loss()
            if loss is None:
                break
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            phase.before_step()
            optimizer.step()
            phase.after_step()
        phase.close()
        phase.found = [phase.weights.delta(i) for i in range(len(phase.texts) if phase.in_lanes else 1)]  # type: ignore[attr-defined]
    return losses


def deltas(phase: TunePhase) -> list[Delta]:
    return phase.found  # type: ignore[attr-defined]


def by_hand(lm: LM, parameters: list[nn.Parameter], recipe: Recipe, bound: float | None, decay: float) -> list[float]:
    """Trains parameters in place, a request after another without padding, as the published loops do; the losses."""
    before = [p.detach().clone() for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    adam = torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=decay)
    losses = []
    for _ in range(recipe.passes):
        seen: list[float] = []
        for start in range(0, len(REQUESTS), recipe.mini_batch):
            of_text: list[Tensor] = []
            for request in REQUESTS[start : start + recipe.mini_batch]:
                prompt, whole = lm.encode(request.text), lm.encode(f"{request.text} {request.target_new}")
                target = torch.tensor(whole[len(prompt) :])
                logits = lm.model(torch.tensor([whole[:-1]]), use_cache=False).logits[0].log_softmax(-1)
                at = (
                    logits[[len(prompt) - 1] * len(target)]
                    if recipe.loss == "prompt_last"
                    else logits[len(prompt) - 1 :]
                )
                of_text.append(-at.gather(1, target[:, None])[:, 0])
            loss = torch.cat(of_text).mean()
            if recipe.loss == "prompt_last":
                loss = torch.stack([one.mean() for one in of_text]).mean()
            seen += [float(loss.detach())] * len(of_text)
            if loss < recipe.stop_loss:
                continue
            losses.append(float(loss.detach()))
            adam.zero_grad()
            loss.backward()
            adam.step()
            if bound is not None:
                with torch.no_grad():
                    for p, old in zip(parameters, before, strict=True):
                        p.copy_(torch.minimum(torch.maximum(p, old - bound), old + bound))
        if sum(seen) / len(seen) < recipe.stop_loss:
            break
    for p in parameters:
        p.requires_grad_(False)
    return losses


@pytest.mark.parametrize("loss", ["target_new", "prompt_last"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_loop_by_hand(kind: str, loss: Loss) -> None:
    lm, other = (tiny_lm(kind, dtype=torch.float64) for _ in range(2))
    recipe = Recipe(40, 0.02, mini_batch=2, loss=loss, stop_loss=0.8 if loss == "target_new" else 3.2)
    paths = [lm.arch.path("mlp_out", layer) for layer in (1, 2)]
    weights = DenseChanges(lm, paths, bound=0.1, weight_decay=1e-3)
    phase = TunePhase(lm, weights, texts_of(lm, loss), recipe, in_lanes=False, first=1)
    losses = trained(phase)
    own = [other.model.get_submodule(path).get_parameter("weight") for path in paths]
    wanted = by_hand(other, own, recipe, 0.1, 1e-3)
    assert losses == pytest.approx(wanted, rel=1e-9)
    assert phase.taken == [len(losses)] * 3
    assert len(losses) < phase.steps, "it stopped, or left steps out"
    for path, change in deltas(phase)[0].of_kind(Dense).items():
        moved = weight(other.model.get_submodule(path)) - weight(lm.model.get_submodule(path))
        torch.testing.assert_close(change.matrix.double(), moved, atol=1e-7, rtol=1e-6)
        assert 0.05 < float(moved.abs().max()) <= 0.1 + 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_equals_a_loop_by_hand(kind: str) -> None:
    """Also with a head that is tied to the embedding: it is one parameter, with the gradients of both."""
    tied: dict[str, Any] = {"tie_word_embeddings": True}
    lm, other = (tiny_lm(kind, dtype=torch.float64, n_layers=2, **tied) for _ in range(2))
    recipe = Recipe(4, 0.01, mini_batch=2)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    phase = TunePhase(lm, AllParameters(lm, 0.03, 1e-3), texts_of(lm), recipe, in_lanes=False)
    losses = trained(phase)
    wanted = by_hand(other, list(other.model.parameters()), recipe, 0.03, 1e-3)
    assert losses == pytest.approx(wanted, rel=1e-9)
    (delta,) = deltas(phase)
    embed = lm.arch.family.embed
    assert embed in delta.paths
    assert lm.arch.family.head not in delta.paths
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    with edited(lm.model, delta):
        for (name, p), q in zip(lm.model.named_parameters(), other.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-6, msg=name)
        assert torch.equal(
            lm.arch.head(lm.model).get_parameter("weight"), lm.arch.embed(lm.model).get_parameter("weight")
        )
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    norm = sum(float((q - before[name]).square().sum()) for name, q in other.model.named_parameters()) ** 0.5
    assert delta.norm() == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_parameter_bit_for_bit(dtype: torch.dtype) -> None:
    """Half-precision weights are trained in float32: many small steps add up, and the bits come back."""
    lm = tiny_lm("llama", dtype=dtype)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    phase = TunePhase(lm, AllParameters(lm, 1e-4), texts_of(lm)[:1], Recipe(3, 1e-5), in_lanes=False)
    trained(phase)
    (delta,) = deltas(phase)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
    changes = [t for change in delta.of_kind(ParameterChange).values() for t in change.changes.values()]
    assert all(t.dtype == torch.float32 and 0 < float(t.abs().max()) <= 1e-4 for t in changes)
    assert sum(t.numel() for t in changes) == sum(p.numel() for p in lm.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [[1], [3], [1, 2]], ids=str)
def test_cached_inputs_are_whole_passes(kind: str, layers: list[int]) -> None:
    """The same losses to 1e-5 in float32, with several layers above and padded mini-batches."""
    lm = tiny_lm(kind, n_layers=5)
    found: list[Any] = []
    for first in (0, layers[0]):
        weights = DenseChanges(lm, [lm.arch.path("mlp_out", layer) for layer in layers])
        generator = torch.Generator().manual_seed(3)
        recipe = Recipe(5, 1e-3, mini_batch=2, shuffled=True)
        phase = TunePhase(lm, weights, texts_of(lm, eos=True), recipe, False, first, generator)
        found.append((trained(phase), phase.losses, deltas(phase)[0].norm()))
    (plain, last, norm), (cached, cached_last, cached_norm) = found
    assert cached == pytest.approx(plain, rel=1e-5)
    assert cached_last == pytest.approx(last, rel=1e-5)
    assert cached_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_are_requests_by_themselves(kind: str) -> None:
    """In float64: each lane ends with the changes and the number of steps of its request alone, when it stops too."""
    lm = tiny_lm(kind, dtype=torch.float64)
    paths, recipe = [lm.arch.path("mlp_out", 1)], Recipe(20, 0.02, stop_loss=0.5)
    texts = texts_of(lm)
    together = TunePhase(lm, DenseChanges(lm, paths, 3, 0.2, 1e-3), texts, recipe, True, 1)
    trained(together)
    for i, text in enumerate(texts):
        alone = TunePhase(lm, DenseChanges(lm, paths, 1, 0.2, 1e-3), [text], recipe, False, 1)
        trained(alone)
        assert together.taken[i] == alone.taken[0]
        assert together.losses[i] == pytest.approx(alone.losses[0], rel=1e-9)
        one, other = (d.of_kind(Dense)[paths[0]].matrix for d in (deltas(alone)[0], deltas(together)[i]))
        torch.testing.assert_close(other, one, atol=1e-7, rtol=1e-6)
    assert len(set(together.taken)) > 1


def test_a_bound_holds_in_the_weights() -> None:
    lm = tiny_lm("gpt2")
    path, eps = lm.arch.path("mlp_out", 1), 5e-4
    phase = TunePhase(lm, DenseChanges(lm, [path], bound=eps), texts_of(lm), Recipe(10, 0.01), False, 1)
    trained(phase)
    w = weight(lm.model.get_submodule(path))
    before = w.clone()
    with edited(lm.model, deltas(phase)[0]):
        rounding = torch.finfo(w.dtype).eps * float(before.abs().max())
        assert eps / 2 < float((w - before).abs().max()) <= eps + rounding
    assert torch.equal(w, before)


def test_a_loss_that_is_not_finite_fails_its_own_request() -> None:
    lm = tiny_lm("llama")
    paths = [lm.arch.path("mlp_out", 1)]
    phase = TunePhase(lm, weights := DenseChanges(lm, paths, 3), texts_of(lm), Recipe(3, 0.01), True, 1)
    with torch.no_grad():
        weights.parameters()[1].fill_(torch.nan)
    trained(phase)
    assert phase.failed == {1}
    assert phase.taken == [3, 0, 3]
    joint = TunePhase(lm, weights := DenseChanges(lm, paths), texts_of(lm), Recipe(3, 0.01), False, 1)
    with torch.no_grad():
        weights.parameters()[0].fill_(torch.nan)
    assert trained(joint) == []
    assert joint.failed == {0, 1, 2}
    assert joint.done


def test_labels_follow_the_words() -> None:
    lm = tiny_lm("llama")
    request = REQUESTS[0]
    prompt, whole = lm.encode(request.text), lm.encode(f"{request.text} {request.target_new}")
    target, last = tuple(whole[len(prompt) :]), len(prompt) - 1
    shifted, bag = text_of(lm, request, "target_new", True), text_of(lm, request, "prompt_last", False)
    assert shifted.ids == tuple(whole)
    assert shifted.labels == (*target, lm.eos_id)
    assert shifted.places == tuple(range(last, len(whole)))
    assert bag == Text(tuple(prompt), (last,) * len(target), target)
