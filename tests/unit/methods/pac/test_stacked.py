"""PAC's stacked forms, where a device waits for launches: the plain ones' numbers, by a bounded count of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kedit.forward.packing import logits_of
from kedit.methods.pac import (
    Objective,
    Selection,
    TraceConfig,
    encode_request,
    labelled,
    select,
    sites,
    trace,
    trace_each,
)
from kedit.methods.pac.tracing.stacked_scores import stacked_zscores
from kedit.methods.pac.trainable import Theta
from tests.support.pac_cases import REQUESTS, asked, course_of, dense, draw, go, sides_of, small, step
from tests.unit.methods.pac.test_scores import assert_near, reference

KINDS = ["llama", "gpt2", "phi3", "opt"]
NO_WORK = ("aten._unsafe_view", "aten.empty", "aten.new_empty", "aten.lift_fresh")


class Count(TorchDispatchMode):
    """How many operations are dispatched inside, but for views, and how many the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.n = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += not (func.is_view or str(func).startswith(NO_WORK))
        self.waits += str(func).startswith("aten._local_scalar_dense")
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], Any]) -> Count:
    with Count() as found:
        run()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("theta", ["updated", "instead"])
@pytest.mark.parametrize("objective", ["alternate", "joint"])
def test_stacked_steps_are_the_plain_ones(kind: str, theta: Theta, objective: Objective) -> None:
    """Over two selections that overlap, so that matrices have different numbers of nodes and some are in both sides."""
    lm = small(kind)
    requests, found = asked(lm, greedy=True), []
    for stacked in (False, True):
        sides, losses = sides_of(lm, theta=theta), []
        sides.stacked = stacked
        for seed in (0, 1):
            optimizer = sides.take(draw(lm, seed, nodes=12))
            losses += go(course_of(lm, sides, requests, objective=objective), optimizer)
            sides.forget()
        found.append((losses, dense(sides.delta())))
    (plain, one), (stack, other) = found
    assert plain == pytest.approx(stack, rel=1e-4)
    assert plain[0] > plain[-2] + 0.1
    for path, change in one.items():
        torch.testing.assert_close(other[path], change, atol=5e-5, rtol=1e-3)
        assert change.any()


@pytest.mark.parametrize("shared", [False, True])
def test_stacked_gradients_are_the_plain_ones(shared: bool) -> None:
    """To float32's rounding, in the lowest layer too, whose input has no graph; two passes in one loss; gates too."""
    lm = small("phi3" if shared else "llama")  # with gates in the keys' matrix, or in one of their own
    requests, found = asked(lm), []
    selection = Selection.random(sites(lm, include_gate=True), 3, 2, torch.Generator().manual_seed(0))
    for stacked in (False, True):
        sides = sides_of(lm, shared=shared)
        sides.stacked = stacked
        sides.take(selection)
        for parameter in sides.critical.parameters():
            parameter.data += 1e-2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
        batch = labelled(lm, [request.text for request in requests])
        with sides.installed("critical"):
            loss = batch.loss(lm) + batch.loss(lm).square()
        loss.backward()
        assert all(parameter.grad is None for parameter in lm.model.parameters())
        found.append([parameter.grad for side in sides._sides for parameter in side.parameters()])
        with sides.installed("critical", learn=False):
            assert not batch.loss(lm).requires_grad
    assert len(found[0]) == 2 - shared
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)
        assert one.abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stacked_changes_beside_half_precision_weights(dtype: torch.dtype) -> None:
    """The float32 changes move the outputs as they do plainly, up to the model's own rounding."""
    lm = small(dtype=dtype)
    batch, outputs = labelled(lm, [encode_request(lm, request) for request in REQUESTS]), []
    for stacked in (False, True):
        sides = sides_of(lm)
        sides.stacked = stacked
        sides.take(draw(lm))
        for side in (sides.critical, sides.contrast):
            side.lines.parameters[0].data += torch.randn(
                side.lines.parameters[0].shape, generator=torch.Generator().manual_seed(3)
            )
        with sides.installed("critical"):
            outputs.append(batch.logits(lm))
        outputs[-1].logsumexp(1).sum().backward()
        outputs.append(torch.cat([p.grad.flatten() for p in sides.critical.parameters() if p.grad is not None]))
    plain, slope, stack, other = (tensor.detach() for tensor in outputs)
    unchanged = batch.logits(lm).detach()
    assert float((stack - plain).norm()) < 0.05 * float((plain - unchanged).norm())
    assert other.dtype == torch.float32
    assert float((other - slope).norm()) < 0.05 * float(slope.norm())


def pair_of(n_layers: int, nodes: int, shared: bool, objective: Objective = "alternate") -> Count:
    """What the second pair of steps takes."""
    lm = small(n_layers=n_layers)
    sides = sides_of(lm, shared=shared)
    sides.stacked = True
    optimizer = sides.take(draw(lm, nodes=nodes))
    course = course_of(lm, sides, asked(lm), objective=objective, best=False, rollback=0.0)

    def pair() -> None:
        for _ in range(2 if objective == "alternate" else 1):
            assert step(course, optimizer) is not None

    pair()
    return counted(pair)


def model_of(n_layers: int) -> int:
    """What two forward and backward passes of the frozen model take, down to its lowest key matrix."""
    lm = small(n_layers=n_layers)
    texts = [request.text for request in asked(lm)]
    batch, ids = labelled(lm, texts), [text.ids[:-1] for text in texts]
    module = lm.model.get_submodule(sites(lm)[0].path)
    handle = module.register_forward_hook(lambda _, args, output: output.detach().requires_grad_())

    def run() -> None:
        for _ in range(2):
            batch.loss_of(logits_of(lm, ids, batch.rows, batch.cols)).backward()

    run()
    found = counted(run)
    handle.remove()
    return found.n


@pytest.mark.parametrize("shared", [False, True])
def test_operations_of_a_pair_do_not_grow_with_the_nodes_and_little_with_the_layers(shared: bool) -> None:
    few, many, deep = pair_of(2, 3, shared), pair_of(2, 25, shared), pair_of(6, 3, shared)
    assert few.n == many.n
    per_layer = (deep.n - few.n - (model_of(6) - model_of(2))) / 4
    assert per_layer <= 2 * 8  # two steps; keys: product, sum, gather, product; values: the same
    assert deep.waits == few.waits <= 4 + 2 * (2 - shared)  # a wait in each step, and what the test's own step reads


def wanted(g: Tensor) -> Tensor:
    """The scores of a gradient `[D, M]`, to which a row without spread adds nothing."""
    spread = g.std(1) > 1e-9
    return reference(g[spread], "zscore").float() * (float(spread.sum()) / len(g))


@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_stacked_zscores_are_those_of_dense_gradients(chunk: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, s = torch.randn(3, 7, 16, generator=generator), torch.randn(3, 7, 40, generator=generator)
    x[1, :, 4] = 0.0  # a row of zeros
    x[2, :, 5], s[2] = 0.0, s[2] + 100.0  # one beside large means
    for one, left, right in zip(stacked_zscores(x, s, chunk), x, s, strict=True):
        assert_near(one, wanted(left.T.double() @ right.double()))
    s[1, 2, 3] = torch.nan
    found = stacked_zscores(x, s, chunk)
    assert found[[0, 2]].isfinite().all()
    assert not found[1].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stacked_trace_is_the_plain_one(kind: str) -> None:
    lm, config = small(kind, n_layers=3), TraceConfig(nodes=5, memory=100.0)
    batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS])
    plain, stack = trace_each(lm, batch, config, stacked=False), trace_each(lm, batch, config, stacked=True)
    pairs = [*zip(plain, stack, strict=True), *[tuple(trace(lm, [batch], config, stacked=s) for s in (False, True))]]
    for wanted, found in pairs:
        assert list(found) == list(wanted)
        for site, value in wanted.items():
            assert_near(found[site], value)
        one, other = select(wanted, config), select(found, config)
        assert all(torch.equal(nodes, other.critical[site]) for site, nodes in one.critical.items())
        assert all(torch.equal(nodes, other.contrast[site]) for site, nodes in one.contrast.items())


def test_a_stacked_trace_scores_a_layer_with_a_few_operations() -> None:
    """Its share of the tiles, of which each has at most as many entries as one matrix, and what its hooks do."""
    found = []
    for n_layers in (3, 7):
        lm = small(n_layers=n_layers)
        batch = labelled(lm, [encode_request(lm, request) for request in REQUESTS[:1]])
        config = TraceConfig(nodes=5, memory=100.0)

        def run(lm: Any = lm, batch: Any = batch, config: Any = config) -> Selection:
            return select(trace(lm, [batch], config, stacked=True), config)

        run()
        found.append(counted(run).n - model_of(n_layers) / 2)
    assert (found[1] - found[0]) / 4 <= 8  # some 70 where each matrix is scored by itself


def test_selection_with_equal_scores_takes_the_first() -> None:
    """One matrix with equal scores, and one without, are chosen from as if each were alone."""
    found = sites(small())
    values = [torch.tensor([3.0, 1.0, 3.0, 3.0, 0.0, 0.0]), torch.arange(6.0)]
    scores: dict[Any, Tensor] = dict(zip(found, values, strict=False))
    selection = select(scores, TraceConfig(nodes=2, contrast_nodes=1))
    assert [nodes.tolist() for nodes in selection.critical.values()] == [[0, 2], [4, 5]]
    assert [nodes.tolist() for nodes in selection.contrast.values()] == [[4], [0]]
