"""PAC's tracing against dense autograd gradients and the released code's loop over them (specs/pac.md 2.4, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kedit.errors import KeditError
from kedit.methods.pac import (
    Labelled,
    Score,
    Scores,
    Site,
    TraceConfig,
    capture,
    encode_request,
    labelled,
    select,
    sites,
    trace,
    trace_each,
)
from kedit.methods.pac.tracing.capture import stream
from kedit.model.architecture import weight
from kedit.model.lm import LM
from kedit.request import EditRequest
from tests.support.tiny_models import KINDS, tiny_lm
from tests.unit.methods.pac.test_scores import SCORES, assert_near, reference

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"}
REQUESTS = [
    EditRequest("1", "The capital of {} is", "France", "Rome"),
    EditRequest("2", "The mother tongue of {}, who lives in Spain, is", "Danielle Darrieux", "English tea"),
    EditRequest("3", "{} is located in", "The Space Needle", "Tokyo"),
]


def batch_of(lm: LM, requests: Sequence[EditRequest] = REQUESTS) -> Labelled:
    return labelled(lm, [encode_request(lm, request) for request in requests])


def dense_gradients(lm: LM, batches: Sequence[Labelled], found: Sequence[Site]) -> dict[Site, Tensor]:
    """Sum of the batches' gradients by autograd on the weights, each `[D, M]`."""
    maps = {site.path: lm.model.get_submodule(site.path) for site in found}
    weights = [cast(torch.nn.Parameter, module.weight).requires_grad_() for module in maps.values()]
    total = torch.stack([batch.loss(lm) for batch in batches]).sum()
    gradients = dict(zip(maps, torch.autograd.grad(total, weights), strict=True))
    for parameter in weights:
        parameter.requires_grad_(False)
    out = {}
    for site in found:
        g = gradients[site.path]
        g = g if isinstance(maps[site.path], torch.nn.Linear) else g.T  # [d_out, d_in]
        out[site] = g[site.rows].T if site.axis == 0 else g
    return out


def assert_untouched(lm: LM) -> None:
    for module in lm.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_factors_multiply_to_the_dense_gradients(kind: str) -> None:
    lm = tiny_lm(kind)
    found, batch = sites(lm, kind in GATED), batch_of(lm)
    kinds = ["gate", "key", "value"] if kind in GATED else ["key", "value"]
    assert [site.kind for site in found] == kinds * 4
    assert [site.layer for site in found] == [layer for layer in range(4) for _ in kinds]
    for site in found:
        assert (site.width, site.depth) == (80, 32)
        fused = site.path.endswith(("gate_up_proj", "Wi"))
        assert weight(lm.model.get_submodule(site.path)).shape[site.axis] == (160 if fused else 80)
        assert site.has_bias == (lm.model.get_submodule(site.path).bias is not None)
    pairs, wanted = capture(lm, batch, found), dense_gradients(lm, [batch], found)
    real = sum(len(encode_request(lm, request).ids) - 1 for request in REQUESTS)  # the last token predicts nothing
    assert real < batch.ids.numel() - len(REQUESTS)  # there is padding
    for site in found:
        x, s = pairs[site]
        assert len(x) == len(s) == (len(batch.labels) if site.layer == 3 else real)
        assert x.dtype == s.dtype == torch.float32
        assert_near(x.T @ s, wanted[site])
    assert_untouched(lm)


def test_a_model_without_gates_has_none_to_include() -> None:
    with pytest.raises(KeditError, match=r"model\.trace\.include_gate"):
        sites(tiny_lm("gpt2"), include_gate=True)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "phi3", "opt", "gemma2"])
@pytest.mark.parametrize("graph_bytes", [0, 300_000])
def test_a_backward_pass_in_spans_gives_the_same_factors(kind: str, graph_bytes: int) -> None:
    lm = tiny_lm(kind)
    found, batch = [site for site in sites(lm) if site.layer > 0], batch_of(lm)
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    handle = lm.arch.layer(lm.model, 1).register_forward_hook(count)
    pairs: dict[Site, tuple[Tensor, Tensor]] = {}
    stream(lm, batch, found, lambda site, x, s: pairs.__setitem__(site, (x, s)), 1.0, graph_bytes)
    assert runs == 2
    handle.remove()
    wanted = capture(lm, batch, found)
    assert list(pairs) == list(reversed(found))
    for site, pair in pairs.items():
        for one, other in zip(pair, wanted[site], strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)
    assert_untouched(lm)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "llama", "mistral", "qwen2", "phi3", "opt"])
def test_scores_and_selection_are_the_dense_ones(kind: str) -> None:
    lm = tiny_lm(kind)
    batch = batch_of(lm, REQUESTS[1:2])
    gradients = dense_gradients(lm, [batch], sites(lm, kind in GATED))
    for score in SCORES:
        config = TraceConfig(score=score, include_gate=kind in GATED)
        scores = trace(lm, [batch], config)
        wanted = {site: reference(g, score) for site, g in gradients.items()}
        assert list(scores) == list(wanted)
        selection = select(scores, config)
        for site, value in wanted.items():
            if score == "signed_sum" and site.kind == "value" and kind in {"gpt2", "gptj", "opt"}:
                # What a LayerNorm reads has a gradient without a mean: the paper's sum is 0 but for rounding.
                assert float(scores[site].abs().max()) < 1e-4 * float(reference(gradients[site], "abs_sum").max())
                continue
            assert_near(scores[site], value)
            assert selection.critical[site].tolist() == sorted(value.topk(15).indices.tolist())
            assert selection.contrast[site].tolist() == [int(value.argmin())]


def test_padding_does_not_matter() -> None:
    lm = tiny_lm("llama")
    batch, config = batch_of(lm), TraceConfig(score="abs_sum")
    wider = replace(batch, ids=torch.nn.functional.pad(batch.ids, (0, 5), value=7))
    other = wider.ids.clone()
    for row in range(3):
        other[row, int(batch.cols[batch.rows == row].max()) + 1 :] = 11
    wanted = trace(lm, [batch], config)
    for same in (wider, replace(wider, ids=other)):
        for site, value in trace(lm, [same], config).items():
            torch.testing.assert_close(value, wanted[site], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_texts_of_a_batch_are_traced_each_as_if_alone(kind: str) -> None:
    lm = tiny_lm(kind)
    passes = []
    for config in (TraceConfig(memory=100.0), TraceConfig(score="l2", memory=1e-6)):
        runs: list[object] = []
        handle = lm.arch.head(lm.model).register_forward_hook(lambda *_, runs=runs: runs.append(1))
        trace_each(lm, batch_of(lm), config)
        handle.remove()
        passes.append(len(runs))
        for request, scores in zip(REQUESTS, trace_each(lm, batch_of(lm), config), strict=True):
            for site, value in trace(lm, [batch_of(lm, [request])], config).items():
                assert_near(scores[site], value)
    assert passes == [1, 3]
    assert_untouched(lm)


@pytest.mark.parametrize("score", SCORES)
def test_many_batches_in_groups_of_matrices_are_traced_as_their_sum(score: Score) -> None:
    lm = tiny_lm("llama")
    batches = [batch_of(lm, REQUESTS[:2]), batch_of(lm, REQUESTS[2:])]
    wanted = {site: reference(g, score) for site, g in dense_gradients(lm, batches, sites(lm)).items()}
    passes = []
    for memory in (1e-6, 0.4, 2.0):
        seen = 0

        def count(*_: object) -> None:
            nonlocal seen
            seen += 1

        handle = lm.arch.head(lm.model).register_forward_hook(count)
        scores: Scores = trace(lm, batches, TraceConfig(score=score, memory=memory))
        handle.remove()
        passes.append(seen / len(batches))
        assert list(scores) == list(wanted)
        for site, value in scores.items():
            assert_near(value, wanted[site])
    assert passes == ([1, 1, 1] if score == "signed_sum" else [8, 4, 1])  # 0.4: two of eight matrices fit into 0.3


@pytest.mark.parametrize("memory", [1e-6, 1000.0])
def test_slices_in_training_count_as_weights(memory: float) -> None:
    lm, changed = tiny_lm("llama"), tiny_lm("llama")
    batch, found = batch_of(lm), sites(lm)
    deltas, graphs = [], []

    def add(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output + args[0] @ deltas[maps.index(module)].T
        graphs.append((maps.index(module), output.requires_grad))
        return output

    maps = [lm.model.get_submodule(site.path) for site in found if site.layer in (0, 2)]
    for site in found:
        if site.layer in (0, 2):
            parameter = cast(Tensor, changed.model.get_submodule(site.path).weight)
            deltas.append(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).mul_(0.1))
            parameter.add_(deltas[-1])
            deltas[-1].requires_grad_()
    handles = [module.register_forward_hook(add) for module in maps]
    scores = trace(lm, [batch], TraceConfig(score="l2", memory=memory))
    for handle in handles:
        handle.remove()
    for site, wanted in dense_gradients(changed, [batch], found).items():
        assert_near(scores[site], reference(wanted, "l2"))
    assert all(delta.grad is None for delta in deltas)
    first = [index for index, _ in graphs].index(3) + 1  # the first pass, layers 0 and 2: no graph below the top span
    assert [made for _, made in graphs[:first]] == [memory > 1] * 4


def test_nothing_is_left_after_an_error_and_training_mode_comes_back() -> None:
    lm = tiny_lm("llama", attention_dropout=0.5)
    lm.model.train()
    batch, found = batch_of(lm), sites(lm)

    def refuse(site: Site, x: Tensor, s: Tensor) -> None:
        if site.layer == 1:
            raise ZeroDivisionError

    for graph_bytes in (None, 0):
        with pytest.raises(ZeroDivisionError):
            stream(lm, batch, found, refuse, 1.0, graph_bytes)
        assert_untouched(lm)
        assert lm.model.training
    with torch.no_grad():
        first = trace(lm, [batch], TraceConfig())  # no dropout, and gradients whatever the caller's mode
    second = trace(lm, [batch], TraceConfig())
    assert all(torch.equal(first[site], second[site]) for site in found)
    assert lm.model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3])
def test_half_precision_weights(dtype: torch.dtype, size: float) -> None:
    """In float16 the loss is scaled, so that small gradients do not vanish and large ones do not overflow."""
    lm, exact = tiny_lm("llama", dtype=dtype), tiny_lm("llama", dtype=dtype)
    exact.model.float()
    batch = replace(batch_of(lm), weights=batch_of(lm).weights * size)
    pairs, wanted = capture(lm, batch, sites(lm)), dense_gradients(exact, [batch], sites(exact))
    for site, (x, s) in pairs.items():
        assert x.dtype == s.dtype == torch.float32
        likeness = torch.nn.functional.cosine_similarity((x.T @ s).flatten(), wanted[site].flatten(), dim=0)
        assert float(likeness) > 0.99
        assert 0.9 < float((x.T @ s).norm() / wanted[site].norm()) < 1.1


def test_a_gradient_that_is_not_finite_is_reported() -> None:
    lm = tiny_lm("gpt2")
    with torch.no_grad():
        lm.arch.module(lm.model, "mlp_out", 2).weight[3, 3] = torch.nan  # type: ignore[index]
    for run in (lambda: trace(lm, [batch_of(lm)], TraceConfig()), lambda: capture(lm, batch_of(lm), sites(lm))):
        with pytest.raises(KeditError, match="no finite gradient"):
            run()
    with pytest.raises(ValueError, match="no batch"):
        trace(lm, [], TraceConfig())


class Largest(TorchDispatchMode):
    """Most numbers in one tensor that an operation inside made; views of the model's own do not count."""

    def __init__(self, lm: LM) -> None:
        super().__init__()
        self.own = {tensor.untyped_storage().data_ptr() for tensor in lm.model.parameters()}
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.own:
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("score", SCORES)
def test_a_request_is_traced_without_a_tensor_of_a_matrix_size(score: Score) -> None:
    lm = tiny_lm("llama", d_model=64, d_ff=320)
    batch = batch_of(lm, REQUESTS[:1])
    trace(lm, [batch], TraceConfig(score=score))  # tables that the model makes at first
    with Largest(lm) as seen:
        trace(lm, [batch], TraceConfig(score=score))
    assert (int(batch.cols.max()) + 1) * 320 <= seen.numel < 64 * 320 / 4
    with Largest(lm) as seen:
        dense_gradients(lm, [batch], sites(lm))
    assert seen.numel == 64 * 320
