"""KN's attributions against one neuron at a time in float64, each by the whole model on the whole text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.errors import KeditError
from kedit.methods.kn import Attribution, AttributionPhase, Point, check_neurons, points_at_once, points_of
from kedit.methods.kn.neurons import neuron_map
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from tests.support.tiny_models import tiny_lm

SMALL: dict[str, Any] = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_ff": 20}
TEXTS = [("The capital of France is", "Paris"), ("Danielle Darrieux, who was born in Spain, speaks", "English tea")]
EPS = 1e-5


def fresh(kind: str, **more: Any) -> LM:
    options: dict[str, Any] = SMALL | {"dtype": torch.float64} | more
    return tiny_lm(kind, **options)


def points(lm: LM) -> list[Point]:
    found = []
    for i, (text, answer) in enumerate(TEXTS):
        tokens = encode(lm, text, answer)
        found += points_of((i, 0), tokens, tokens.target)
    return found


def attributed(lm: LM, some: list[Point], steps: int) -> Attribution:
    phase = AttributionPhase(Attribution(lm, some, steps))
    optimizer = phase.optimizer()
    while not phase.done:
        loss = phase.loss()
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        phase.before_step()
        optimizer.step()
    assert phase.loss() is None
    return phase.attribution


def p_with(lm: LM, point: Point, layer: int, activations: Tensor | None) -> tuple[Tensor, Tensor]:
    """p(token) with other activations at the last token of a layer, and those that are there."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        rows = output.reshape(len(point.ids), -1)
        seen.append(rows[-1, : SMALL["d_ff"]].detach().clone())
        if activations is None:
            return None
        rows = rows.clone()
        rows[-1, : SMALL["d_ff"]] = activations
        return rows.reshape(output.shape)

    handle = neuron_map(lm, layer).register_forward_hook(hook)
    try:
        logits = lm.model(input_ids=torch.tensor([point.ids])).logits[0, -1]
    finally:
        handle.remove()
    return logits.softmax(-1)[point.token], seen[0]


def slope(lm: LM, point: Point, layer: int, at: Tensor, i: int, by: str) -> float:
    """The derivative of p by the activation of one neuron."""
    unit = torch.zeros_like(at)
    unit[i] = 1
    if by == "differences":
        more, less = (p_with(lm, point, layer, at + sign * EPS * unit)[0] for sign in (1, -1))
        return float(more - less) / (2 * EPS)
    x = torch.zeros((), dtype=at.dtype, requires_grad=True)
    return float(torch.autograd.grad(p_with(lm, point, layer, at + x * unit)[0], x)[0])


def one_by_one(lm: LM, point: Point, layer: int, steps: int, by: str = "autograd") -> Tensor:
    a = p_with(lm, point, layer, None)[1]
    found = torch.zeros_like(a)
    for scale in torch.linspace(0, 1, steps).tolist():
        for i in range(len(a)):
            found[i] += a[i] / steps * slope(lm, point, layer, a * scale, i, by)
    return found


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    ("kind", "by", "tolerance"),
    [
        ("gpt2", "differences", 1e-6),
        ("gpt2", "autograd", 1e-9),
        ("gptj", "autograd", 1e-5),  # so do its positions
        ("opt", "autograd", 1e-9),
        ("llama", "autograd", 1e-4),  # its norms are computed in float32, whatever the weights are
        ("phi3", "autograd", 1e-4),
    ],
)
def test_it_is_one_neuron_at_a_time(kind: str, by: str, tolerance: float, steps: int) -> None:
    lm = fresh(kind)
    some = points(lm)
    found = attributed(lm, some, steps)
    for at, layer in ((0, 0), (0, 1), (len(some) - 1, 1)):
        wanted = one_by_one(lm, some[at], layer, steps, by)
        size = float(wanted.abs().max())
        assert (size > 0) != (kind == "opt" and steps == 1)  # ReLU is flat at zero
        torch.testing.assert_close(found.scores[at, layer], wanted, atol=tolerance * size, rtol=tolerance)
        p = float(p_with(lm, some[at], 0, None)[0])
        assert float(found.probabilities[at]) == pytest.approx(p, rel=tolerance)


def test_an_answer_is_the_mean_of_its_tokens() -> None:
    lm = fresh("llama")
    some = points(lm)
    assert [point.of for point in some].count((1, 0)) > 1
    found = attributed(lm, some, 3)
    by_prompt = found.by_prompt()
    for i in range(2):
        mine = [n for n, point in enumerate(some) if point.of == (i, 0)]
        scores, p = by_prompt[i, 0]
        torch.testing.assert_close(scores, found.scores[mine].mean(0))
        assert p == pytest.approx(float(found.probabilities[mine].mean()))


def test_neither_company_nor_half_precision_matters() -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        lm = fresh("gpt2", dtype=dtype)
        some = points(lm)
        together = attributed(lm, some, 4).scores
        assert together.dtype == torch.float32
        for point, scores in zip(some, together, strict=True):
            alone = attributed(lm, [point], 4).scores[0]
            size = float(alone.abs().max())
            torch.testing.assert_close(scores, alone, atol=tolerance * size, rtol=tolerance)
        assert all(parameter.grad is None for parameter in lm.model.parameters())
        assert not any(module._forward_hooks for module in lm.model.modules())


def test_prompts_of_one_token() -> None:
    lm = fresh("gpt2")
    point = Point((0, 0), (5,), 7, 1.0)
    wanted = one_by_one(lm, point, 1, 3)
    torch.testing.assert_close(attributed(lm, [point, *points(lm)], 3).scores[0, 1], wanted, atol=0, rtol=1e-9)


def test_how_many_go_together() -> None:
    assert points_at_once(20, torch.device("cpu")) == 6
    assert points_at_once(20, torch.device("cuda")) == 12
    assert points_at_once(1000, torch.device("cpu")) == 1


def test_models_without_such_neurons_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("gpt2", "llama", "gemma2", "phi3", "modernbert-decoder", "falcon"):
        check_neurons(tiny_lm(kind, **SMALL))
    fused = tiny_lm("phi3", **SMALL)
    monkeypatch.setattr("kedit.methods.kn.neurons.FAMILIES", {})
    check_neurons(tiny_lm("gpt2", **SMALL))
    with pytest.raises(KeditError, match=r"tiny-phi3: KN cannot tell which outputs of the MLP .* \(mlp.gate_up_proj\)"):
        check_neurons(fused)
    monkeypatch.setattr("kedit.methods.kn.neurons.embeddings", lambda lm: torch.zeros(600, 8))
    with pytest.raises(KeditError, match="embeddings into the residual stream, but they are 8 wide and it is 16"):
        check_neurons(tiny_lm("gpt2", **SMALL))
