"""KN's attributions against one neuron at a time in float64: finite differences of the whole model, no cache, no rows."""

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
    return tiny_lm(kind, **(SMALL | {"dtype": torch.float64} | more))


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


@torch.no_grad()
def p_with(lm: LM, point: Point, layer: int, activations: Tensor | None) -> tuple[float, Tensor]:
    """p(token) with other activations at the last token of a layer, and those that are there."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        rows = output.reshape(len(point.ids), -1)
        seen.append(rows[-1, : SMALL["d_ff"]].clone())
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
    return float(logits.softmax(-1)[point.token]), seen[0]


def one_by_one(lm: LM, point: Point, layer: int, steps: int) -> Tensor:
    _, a = p_with(lm, point, layer, None)
    found = torch.zeros_like(a)
    for scale in torch.linspace(0, 1, steps).tolist():
        for i in range(len(a)):
            step = torch.zeros_like(a)
            step[i] = EPS
            more, less = (p_with(lm, point, layer, a * scale + sign * step)[0] for sign in (1, -1))
            found[i] += a[i] / steps * (more - less) / (2 * EPS)
    return found


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3", "opt", "gptj"])
def test_it_is_one_neuron_at_a_time(kind: str, steps: int) -> None:
    lm = fresh(kind)
    some = points(lm)
    found = attributed(lm, some, steps)
    for at in (0, len(some) - 1):
        for layer in range(2):
            wanted = one_by_one(lm, some[at], layer, steps)
            assert float(wanted.abs().max()) > 1e-9
            torch.testing.assert_close(found.scores[at, layer], wanted, atol=1e-8, rtol=1e-5)
        assert float(found.probabilities[at]) == pytest.approx(p_with(lm, some[at], 0, None)[0], rel=1e-9)


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
    torch.testing.assert_close(attributed(lm, [point, *points(lm)], 3).scores[0, 1], wanted, atol=1e-8, rtol=1e-5)


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
