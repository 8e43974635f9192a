"""`kedit.forward.activations`: the model ends where it is read, equal rows run once, and no hook is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kedit.forward.activations import Row, Side, read, reading
from tests.support.tiny_models import tiny_lm


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_states_are_those_of_a_full_pass(kind: str) -> None:
    lm = tiny_lm(kind, n_layers=3)
    a, b = (tuple(lm.encode(text)) for text in ("The capital of France is", "Berlin is a city"))
    rows: list[Row] = [(-1, b), (-1, a), (-1, b)]
    module, layer = lm.arch.module(lm.model, "mlp_out", 1), lm.arch.layer(lm.model, 1)
    want: dict[str, Tensor] = {}

    def leaves(_: object, __: object, output: Any) -> None:
        want["output"] = output[0] if isinstance(output, tuple) else output

    handles = [
        module.register_forward_hook(lambda _, args, out: want.update(input=args[0])),
        layer.register_forward_hook(leaves),
    ]
    with torch.no_grad():
        lm.model(input_ids=torch.tensor([a]))
    for handle in handles:
        handle.remove()
    ran: list[object] = []
    handle = lm.arch.layer(lm.model, 2).register_forward_pre_hook(lambda *_: ran.append(None))
    sides: list[tuple[Side, nn.Module]] = [("input", module), ("output", layer)]
    for side, at in sides:
        ((part, states),) = read(lm, rows, at, side)
        assert part == sorted(set(rows), key=lambda row: -len(row[1]))
        assert states.shape[:2] == (2, len(a))
        full = want[side].reshape(1, len(a), -1)
        torch.testing.assert_close(states[part.index((-1, a))], full[0], atol=1e-4, rtol=1e-4)
        assert [len(some) for some, _ in read(lm, rows, at, side, batch_tokens=1)] == [1, 1]
    assert not ran, "a layer above the one that is read"
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_several_modules_in_one_pass_and_an_error_in_it() -> None:
    lm = tiny_lm("gpt2", n_layers=3)
    ids, seen = torch.tensor([lm.encode("The capital of France is")]), dict[int, Tensor]()
    taps = {lm.arch.module(lm.model, "mlp_out", i): lambda keys, i=i: seen.update({i: keys}) for i in (0, 2)}
    with reading(taps):
        lm.model(input_ids=ids)
        seen[3] = ids  # the block has ended
    assert seen.keys() == {0, 2}
    with pytest.raises(ZeroDivisionError), reading(taps):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
