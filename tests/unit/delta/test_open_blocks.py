"""`edited` left in any order, from two threads, and interrupted while it restores: the old weights, bit for bit."""

from __future__ import annotations

import copy
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.delta.apply import edited
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.master_weights import ParameterBackup
from kedit.delta.open_blocks import leave
from kedit.delta.slices import Slices
from kedit.errors import KeditError
from tests.support.tiny_models import tiny_model

PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A tiny Llama."""
    return tiny_model("llama").to(request.param)


def weight(model: nn.Module) -> Tensor:
    return model.get_parameter(f"{PATH}.weight")


def deltas(model: nn.Module, n: int) -> list[Delta]:
    """Changes of the same matrix, every second one of two of its rows."""
    d_out, d_in = weight(model).shape
    chance = torch.Generator().manual_seed(0)
    low = [Factors(torch.randn(d_out, 1, generator=chance), torch.randn(1, d_in, generator=chance)) for _ in range(n)]
    rows = Slices(torch.tensor([1, 3]), torch.randn(2, d_in, generator=chance), 0, (d_out, d_in))
    return [Delta({PATH: f}) if i % 2 == 0 else Delta({PATH: rows}) for i, f in enumerate(low)]


def carried(model: nn.Module, *some: Delta) -> Tensor:
    """The weight in nested blocks."""
    with ExitStack() as stack:
        for delta in some:
            stack.enter_context(edited(model, delta))
        return weight(model).detach().clone()


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
def test_left_in_any_order(order: str, model: nn.Module) -> None:
    old = weight(model).detach().clone()
    named = dict(zip("abc", deltas(model, 3), strict=True))
    left = list(named)
    want = {rest: carried(model, *(named[name] for name in rest)) for rest in ("ab", "ac", "bc", "a", "b", "c")}
    blocks = {name: edited(model, delta) for name, delta in named.items()}
    for block in blocks.values():
        block.__enter__()
    for name in order:
        blocks[name].__exit__(None, None, None)
        left.remove(name)
        if left:
            assert torch.equal(weight(model), want["".join(left)]), left
    assert torch.equal(weight(model), old)
    assert not [name for name in model.__dict__ if "kedit" in name]


def test_two_generators(model: nn.Module) -> None:
    old = weight(model).detach().clone()

    def work(delta: Delta) -> Generator[int, None, None]:
        with edited(model, delta):
            yield 1
            yield 2

    a, b = (work(delta) for delta in deltas(model, 2))
    assert [next(a), next(b), next(a), next(b)] == [1, 1, 2, 2]
    a.close()
    assert not torch.equal(weight(model), old)
    b.close()
    assert torch.equal(weight(model), old)


def test_another_thread_is_refused(model: nn.Module) -> None:
    old = weight(model).detach().clone()
    mine, theirs = deltas(model, 2)
    said: list[str] = []

    def other() -> None:
        try:
            with edited(model, theirs):
                said.append("edited")
        except KeditError as error:
            said.append(str(error))

    with edited(model, mine):
        inside = weight(model).detach().clone()
        for _ in range(2):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert torch.equal(weight(model), inside)
    thread = threading.Thread(target=other)  # in turn
    thread.start()
    thread.join()
    assert [text.partition(":")[0] for text in said] == ["this model is being edited by another thread"] * 2 + [
        "edited"
    ]
    assert torch.equal(weight(model), old)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("measured_at", ["before", "within"])
def test_a_signal_while_it_restores(
    measured_at: str, number: signal.Signals, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a matrix, and right before signals are held back."""
    old = weight(model).detach().clone()
    first, second = deltas(model, 2)
    restore, sent = ParameterBackup.restore, []

    def interrupted(self: ParameterBackup, w: Tensor) -> None:
        if not sent:
            sent.append(number)
            with torch.no_grad():
                w.zero_()
            signal.raise_signal(number)
        restore(self, w)

    def stop(*_: Any) -> None:
        raise SystemExit(143)

    def late(*what: Any) -> None:
        if not sent:
            sent.append(number)
            signal.raise_signal(number)
        leave(*what)

    def block() -> None:
        with edited(model, first), edited(model, second):
            if measured_at == "within":
                monkeypatch.setattr(ParameterBackup, "restore", interrupted)
            else:
                monkeypatch.setattr("kedit.delta.apply.leave", late)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            block()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sent == [number]
    assert torch.equal(weight(model), old)
    assert not [name for name in model.__dict__ if "kedit" in name]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_copy_has_no_open_block(model: nn.Module) -> None:
    one, two = deltas(model, 2)
    with edited(model, one):
        twin = copy.deepcopy(model)
        within = carried(twin, two)
    assert not torch.equal(weight(twin), within)
    old, said = weight(twin).detach().clone(), []
    thread = threading.Thread(target=lambda: said.append(carried(twin, two)))
    thread.start()
    thread.join()
    assert torch.equal(said[0], within)
    assert torch.equal(weight(twin), old)


def test_a_delta_that_does_not_fit_opens_nothing(model: nn.Module) -> None:
    old = weight(model).detach().clone()
    (good,) = deltas(model, 1)
    bad = Delta({"model.layers.9.mlp.down_proj": good.of_kind(Factors)[PATH]})
    with pytest.raises(KeditError, match="does not have"), edited(model, good, bad):
        raise AssertionError
    assert torch.equal(weight(model), old)
    assert not [name for name in model.__dict__ if "kedit" in name]
