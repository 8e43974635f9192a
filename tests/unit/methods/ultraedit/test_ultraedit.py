"""UltraEdit against a reference that goes token by token, its two systems, and its running statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kedit.delta.apply import edited
from kedit.delta.change import WeightChange
from kedit.delta.delta import Delta
from kedit.delta.dense import Dense
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.methods import UltraEdit
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.ultraedit.normaliser import EPS, Normaliser, Statistics
from kedit.methods.ultraedit.pairs import PairPhase, chunk_of
from kedit.methods.ultraedit.solve import by_tokens, by_width, solve
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.model.tokenization import encode
from kedit.request import EditRecord, EditRequest
from tests.support.device import DEVICE
from tests.support.runs_in_memory import edit_batches
from tests.support.tiny_models import tiny_lm

REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome, in Italy"),
    EditRequest("2", "The mother tongue of {} is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
    EditRequest("4", "Who is the president of the United States?", None, "Steve Jobs"),
    EditRequest("5", "Toyota Camry is produced by", None, "Honda"),
]
ETA = 1e-3


def run(lm: LM, regime: Any, size: int, **options: Any) -> tuple[list[EditBatch], UltraEdit]:
    module = UltraEdit(**({"eta": ETA, "chunk": 2} | options)).configure(edit=EditConfig(regime))
    return edit_batches(module, lm, REQUESTS, size), module


def token_by_token(lm: LM, path: str, size: int, chunk: int, which: str, eos: bool = False) -> list[Tensor]:
    """The deltas of a module over a sequence of edit batches, in float64: full gradients of whole rows, plain loops."""
    module = lm.model.get_submodule(path)
    w = weight(module)
    seen: list[Tensor] = []  # every (h, g) ever met
    deltas: list[Tensor] = []
    for start in range(0, len(REQUESTS), size):
        now: list[tuple[Tensor, Tensor]] = []
        some = REQUESTS[start : start + size]
        for first in range(0, len(some), chunk):
            part = [encode(lm, r.text, r.target_new) for r in some[first : first + chunk]]
            texts = [(*t.ids, *((lm.eos_id,) if eos else ())) for t in part]
            total = sum(len(ids) - t.n_prompt for ids, t in zip(texts, part, strict=True))
            for ids, t in zip(texts, part, strict=True):
                kept: dict[str, Tensor] = {}

                def hook(_: Any, args: Any, out: Tensor, kept: dict[str, Tensor] = kept) -> Tensor:
                    kept["h"] = args[0][0]
                    kept["y"] = out.detach().requires_grad_()
                    return kept["y"]

                handle = module.register_forward_hook(hook)
                logits = lm.model(torch.tensor([ids[:-1]])).logits[0]
                handle.remove()
                loss = sum(-logits[at - 1].log_softmax(-1)[ids[at]] for at in range(t.n_prompt, len(ids))) / total
                (g,) = torch.autograd.grad(loss, kept["y"])  # type: ignore[arg-type]
                chosen = range(t.n_prompt - 1, len(ids) - 1) if which == "answer" else range(len(ids) - 1)
                now += [(kept["h"][at], g[0, at]) for at in chosen]
        seen += [torch.cat(pair) for pair in now]
        mean, std = torch.stack(seen).mean(0), torch.stack(seen).std(0)
        d_in = w.shape[1]
        left, right = torch.eye(d_in, dtype=torch.float64), torch.zeros(d_in, w.shape[0], dtype=torch.float64)
        for h, g in now:
            hat = (torch.cat([h, g]) - mean) / (std + EPS)
            v = -ETA * hat[:d_in].norm() ** 2 * hat[d_in:]
            left += torch.outer(h, h)
            right += torch.outer(h, v)
        deltas.append((torch.linalg.inv(left) @ right).T)
        with torch.no_grad():
            w += deltas[-1]
    return deltas


def dense_of(delta: Delta | None, path: str) -> Tensor:
    assert delta is not None
    (change,) = dict(delta.items())[path]
    assert isinstance(change, WeightChange)
    return change.dense().double()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("which", "size", "eos"), [("answer", 3, False), ("all", 2, False), ("answer", 5, True)])
def test_it_is_the_reference_that_goes_token_by_token(kind: str, which: Any, size: int, eos: bool) -> None:
    small: dict[str, Any] = {"n_layers": 3, "d_model": 16, "d_ff": 24, "dtype": torch.float64}
    lm, other = tiny_lm(kind, **small), tiny_lm(kind, **small)
    path = lm.arch.path("mlp_out", 1)
    layers = {"gate_layers": [], "up_layers": [], "down_layers": [1]}
    batches, _ = run(lm, "sequential", size, tokens=which, target_eos=eos, **layers)
    wanted = token_by_token(other, path, size, 2, which, eos)
    assert len(batches) == len(wanted)
    for batch, want in zip(batches, wanted, strict=True):
        assert [outcome.error for outcome in batch.outcomes] == [None] * len(batch.records)
        found = dense_of(batch.deltas[0], path)
        assert float((found - want).abs().max()) < 2e-5 * float(want.abs().max())


def test_statistics_are_those_of_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 11, generator=generator, dtype=torch.float64) * 5 + 3
    running = Statistics.empty(11, DEVICE)
    for part in x.split([1, 1, 9, 20, 6]):
        running.update(part)
    assert running.n == 37
    torch.testing.assert_close(running.mean, x.mean(0), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close((running.m2 / 36).sqrt(), x.std(0), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(running.normalised(x), (x - x.mean(0)) / (x.std(0) + EPS), atol=1e-10, rtol=1e-10)


def test_both_systems_give_one_delta() -> None:
    generator = torch.Generator().manual_seed(1)
    for t, d_in, d_out in ((3, 8, 5), (30, 8, 5), (4, 8, 5)):
        h, v = (torch.randn(t, d, generator=generator, dtype=torch.float64) for d in (d_in, d_out))
        one, other = by_tokens(h, v).T @ h, by_width(h, v)
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-10)
        change = solve(h, v)
        assert isinstance(change, Dense if t * (d_in + d_out) > d_in * d_out else Factors)
        torch.testing.assert_close(change.dense().double(), other, atol=1e-5, rtol=1e-5)


def test_the_sum_of_many_edits_is_kept_in_the_smaller_form() -> None:
    module = UltraEdit()
    small = Delta({"a": Factors(torch.randn(5, 2), torch.randn(2, 8))})
    assert module.finish(small) is None
    large = Delta(
        {"a": Factors(torch.randn(5, 4), torch.randn(4, 8)), "b": Factors(torch.randn(5, 2), torch.randn(2, 8))}
    )
    total = Delta.concat([large, Delta({"a": Dense(torch.randn(5, 8))})])
    found = module.finish(total)
    assert found is not None
    assert [type(change) for path in ("a", "b") for change in dict(found.items())[path]] == [Dense, Factors]
    wanted = sum(change.dense() for change in dict(total.items())["a"] if isinstance(change, WeightChange))
    torch.testing.assert_close(found.of_kind(Dense)["a"].matrix, wanted)


def test_the_normaliser_of_a_checkpoint_is_the_same_to_the_bit() -> None:
    normaliser, other = Normaliser(DEVICE), Normaliser(DEVICE)
    normaliser.update(torch.randn(4, 3), torch.randn(4, 2))
    other.load(normaliser.state())  # type: ignore[arg-type]
    for one in (normaliser, other):
        one.update(torch.ones(2, 3), torch.zeros(2, 2))
    mine, theirs = normaliser.of_shape[3, 2], other.of_shape[3, 2]
    assert mine.n == theirs.n == 6
    assert torch.equal(mine.m2, theirs.m2)
    state = normaliser.state()
    state[0]["m2"] = state[0]["m2"].float()
    with pytest.raises(KeditError, match="damaged"):
        other.load(state)  # type: ignore[arg-type]


def test_no_graph_below_the_lowest_edited_module() -> None:
    lm = tiny_lm("llama", n_layers=4)
    modules = {lm.arch.path("mlp_out", layer): lm.arch.module(lm.model, "mlp_out", layer) for layer in (2, 3)}
    tracked: dict[int, bool] = {}
    for layer in range(4):

        def hook(_: Any, args: Any, out: Any, layer: int = layer) -> None:
            tracked[layer] = bool((out[0] if isinstance(out, tuple) else out).requires_grad)

        lm.arch.layer(lm.model, layer).register_forward_hook(hook)
    phase = PairPhase(lm, modules, chunk_of(lm, REQUESTS, "answer", False, alone=False))
    phase.loss().backward()
    assert tracked == {0: False, 1: False, 2: True, 3: True}
    assert phase.done
    assert phase.finite
    assert all(parameter.grad is None for parameter in lm.model.parameters())
    assert not any(module._forward_hooks for module in modules.values())


def test_an_edit_brings_its_target_nearer() -> None:
    """Batch and single regime: what the unedited model is asked again, edited, costs less."""
    lm = tiny_lm("llama", n_layers=4)
    batches, module = run(lm, "batch", 5, warmup=40)
    again = PairPhase(lm, module.modules_edited, chunk_of(lm, REQUESTS, "answer", False, alone=True))
    _ = again.loss()
    assert again.losses is not None
    before = again.losses
    assert batches[0].deltas[0] is not None
    with edited(lm.model, batches[0].deltas[0]):
        _ = again.loss()
    assert float(again.losses.mean()) < float(before.mean())


def test_bad_options_are_named() -> None:
    with pytest.raises(KeditError, match=r"^model\.eta"):
        UltraEdit(eta=0.0)
    with pytest.raises(KeditError, match=r"^model\.chunk"):
        UltraEdit(chunk=0)
    lm = tiny_lm("gpt2", n_layers=3)
    with pytest.raises(KeditError, match=r"^model\.gate_layers: .* no gate"):
        run(lm, "sequential", 2, gate_layers=[1])
    with pytest.raises(KeditError, match=r"^model\.down_layers"):
        run(lm, "sequential", 2, down_layers=[7])
    with pytest.raises(KeditError, match=r"all are empty"):
        run(lm, "sequential", 2, gate_layers=[], up_layers=[], down_layers=[])


def test_one_token_alone_is_no_measure() -> None:
    lm = tiny_lm("llama", n_layers=3)
    short = [EditRequest("1", "The capital of {} is", "France", "is")]
    assert len(encode(lm, short[0].text, "is").target) == 1
    batch = EditBatch.of(0, [EditRecord(short[0], ())])
    module = UltraEdit(gate_layers=[], up_layers=[], down_layers=[1])
    module.use_lm(lm)
    module.modules_edited = {lm.arch.path("mlp_out", 1): lm.arch.module(lm.model, "mlp_out", 1)}
    module.normaliser = Normaliser(DEVICE)
    program = module.edit(batch)
    phase = next(program)
    loss = phase.loss()
    assert loss is not None
    loss.backward()
    with pytest.raises(StopIteration) as end:
        next(program)
    assert end.value.value == [None]
    assert "one token alone" in str(batch.outcomes[0].error)
