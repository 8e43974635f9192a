"""PAC's two sides, T+ and T-: what is trained, kept, undone and begun anew, and the delta of both."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kedit.methods.pac import Bias, Objective, Rectifier, Site, sites
from tests.support.pac_cases import asked, course_of, dense, draw, go, same, sides_of, small, step, values


@pytest.mark.parametrize("bias", ["code", "masked", "none"])
def test_reset_puts_earlier_changes_back(bias: Bias) -> None:
    lm = small("gptj")
    slim, generator = Rectifier(lm, bias), torch.Generator().manual_seed(0)

    def shake() -> None:
        for parameter in slim.parameters():
            parameter.data += torch.randn(parameter.shape, generator=generator)

    slim.take(draw(lm, 0))
    shake()
    kept, before = slim.changes(), dense(slim.delta())
    assert all(change.any() for change in before.values())
    shake()
    slim.take(draw(lm, 1))
    shake()
    assert not any(torch.equal(change, before[path]) for path, change in dense(slim.delta()).items())
    slim.reset(kept)
    after = dense(slim.delta())
    assert after.keys() == before.keys()
    assert all(torch.equal(change, before[path]) for path, change in after.items())
    assert all(len(index) > 3 for index in slim.index.values()), "nodes taken since are gone"
    shake()
    slim.reset({})
    assert not any(change.any() for change in dense(slim.delta()).values())


@pytest.mark.parametrize("shared", [False, True])
def test_a_side_that_is_not_trained(shared: bool) -> None:
    """It stands still, or, with one Adam, goes on by its momentum."""
    lm = small()
    requests, selection = asked(lm), draw(lm)
    sides = sides_of(lm, shared=shared)
    optimizer = sides.take(selection)
    course = course_of(lm, sides, requests)

    def now() -> dict[str, dict[Site, Tensor]]:
        found = {"critical": values(sides.critical), "contrast": values(sides.contrast)}
        if shared:
            nodes = {"critical": selection.critical, "contrast": selection.contrast}
            for name, own in nodes.items():
                index = sides.critical.index
                found[name] = {s: v[torch.searchsorted(index[s], own[s])] for s, v in values(sides.critical).items()}
        return found

    moved = []
    for _ in range(4):
        before = now()
        assert step(course, optimizer) is not None
        after = now()
        moved.append([part for part in ("critical", "contrast") if not same(before[part], after[part])])
    alone = [["critical"], ["contrast"], ["critical"], ["contrast"]]
    assert moved == (
        [["critical"], ["critical", "contrast"], ["critical", "contrast"], ["critical", "contrast"]]
        if shared
        else alone
    )


def test_a_new_optimiser_after_forget_alone() -> None:
    lm = small()
    sides = sides_of(lm)
    first = sides.take(draw(lm, 0))
    step(course_of(lm, sides, asked(lm)), first)
    assert first.state
    assert sides.take(draw(lm, 1)) is first
    sides.forget()
    second = sides.take(draw(lm, 2))
    assert second is not first
    assert not second.state
    owned = {id(p) for group in second.param_groups for p in group["params"]}
    assert owned == {id(p) for p in (*sides.critical.parameters(), *sides.contrast.parameters())}


@pytest.mark.parametrize("objective", ["alternate", "joint"])
def test_nodes_of_an_earlier_trace_keep_their_changes(objective: Objective) -> None:
    """With an Adam for each trace, only the nodes of the last one are trained."""
    lm = small()
    requests, first, second = asked(lm), draw(lm, 0), draw(lm, 1)
    sides = sides_of(lm)
    go(course_of(lm, sides, requests, passes=2, objective=objective), sides.take(first))
    before = {"critical": values(sides.critical), "contrast": values(sides.contrast)}
    index = {"critical": dict(sides.critical.index), "contrast": dict(sides.contrast.index)}
    sides.forget()
    go(course_of(lm, sides, requests, passes=2, objective=objective), sides.take(second))
    wanted = {"critical": second.critical, "contrast": second.contrast}
    for part, side in (("critical", sides.critical), ("contrast", sides.contrast)):
        for site, nodes in wanted[part].items():
            moved = side.values[site].detach().clone()
            moved[torch.searchsorted(side.index[site], index[part][site])] -= before[part][site]
            found = side.index[site][moved.abs().amax(1) > 0]
            assert torch.equal(found, nodes), f"{part} of {site.path}: {found.tolist()}, not {nodes.tolist()}"


def test_undo_goes_back_to_begin() -> None:
    lm = small("gptj")
    requests, sides = asked(lm), sides_of(lm, bias="code")
    sides.begin()
    go(course_of(lm, sides, requests[:1]), sides.take(draw(lm, 0)))
    kept = dense(sides.delta())
    sides.begin()
    go(course_of(lm, sides, requests[1:]), sides.take(draw(lm, 1)))
    assert not torch.equal(dense(sides.delta())["transformer.h.0.mlp.fc_in"], kept["transformer.h.0.mlp.fc_in"])
    sides.undo()
    assert all(torch.equal(change, kept[path]) for path, change in dense(sides.delta()).items())


def test_the_delta_is_the_sum_of_both_sides_or_that_of_top() -> None:
    lm = small("gptj")
    sides = sides_of(lm, bias="code")
    go(course_of(lm, sides, asked(lm)), sides.take(draw(lm)))
    critical, contrast = dense(sides.critical.delta()), dense(sides.contrast.delta())
    both, alone = dense(sides.delta(merge=True)), dense(sides.delta(merge=False))
    for path, change in critical.items():
        assert contrast[path].any()
        assert torch.equal(alone[path], change)
        torch.testing.assert_close(both[path], change + contrast[path])


def test_layer_weights_scale_the_learning_rate() -> None:
    """Adam's first step is its learning rate, wherever the gradient is not tiny."""
    lm = small("gptj")
    found = sites(lm)
    weights = {site: 0.25 + 0.5 * i for i, site in enumerate(found)}
    sides = sides_of(lm, lr=1e-3, bias="code")
    step(course_of(lm, sides, asked(lm)), sides.take(draw(lm), weights))
    for site, w in weights.items():
        assert float(sides.critical.values[site].detach().abs().max()) == pytest.approx(1e-3 * w, rel=1e-3)
        assert float(sides.critical.biases[site].detach().abs().max()) == pytest.approx(1e-3 * w, rel=1e-3)
    assert not any(value.any() for value in values(sides.contrast).values())
