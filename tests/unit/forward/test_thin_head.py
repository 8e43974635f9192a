"""The output head at a few rows: the same product, and only where it is known to be one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kedit.forward import thin_head as thin
from kedit.forward.logits import logits_at
from kedit.forward.thin_head import thin_head
from tests.support.device import DEVICE
from tests.support.tiny_models import tiny_lm

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="only a CPU computes heads so")


def head(vocab: int = 5000, width: int = 24) -> nn.Linear:
    made = nn.Linear(width, vocab, bias=False)
    return made.requires_grad_(False)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_logits_and_gradients_are_those_of_the_product(n: int) -> None:
    own = head()
    hidden = torch.randn(1, n, 24, requires_grad=True)
    with thin_head(own, n):
        assert "forward" in own.__dict__
        logits = own(hidden)
    wanted_hidden = hidden.detach().double().requires_grad_()
    wanted = F.linear(wanted_hidden, own.weight.double())
    assert logits.shape == wanted.shape
    assert logits.is_contiguous()
    torch.testing.assert_close(logits.double(), wanted, atol=1e-5, rtol=1e-5)
    grad = torch.randn_like(wanted)
    logits.backward(grad.float())
    wanted.backward(grad)
    assert hidden.grad is not None
    assert wanted_hidden.grad is not None
    torch.testing.assert_close(hidden.grad.double(), wanted_hidden.grad, atol=2e-4, rtol=1e-5)


class Capped(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).tanh()


@pytest.mark.parametrize(
    ("own", "n"),
    [
        (head(), 1),
        (head(), 8),
        (head(vocab=300), 3),
        (nn.Linear(24, 5000).requires_grad_(False), 3),
        (nn.Linear(24, 5000, bias=False), 3),
        (head().bfloat16(), 3),
        (Capped(24, 5000, bias=False).requires_grad_(False), 3),
        (nn.Sequential(head()), 3),
    ],
    ids=["one row", "many rows", "few words", "bias", "trained", "bfloat16", "another class", "wrapped"],
)
def test_any_other_head_stays_as_it_is(own: nn.Module, n: int) -> None:
    with thin_head(own, n):
        assert "forward" not in own.__dict__


def test_mixed_precision_stays_as_it_is() -> None:
    own, hidden = head(), torch.randn(1, 3, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), thin_head(own, 3):
        assert "forward" not in own.__dict__
        logits = own(hidden)
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert hidden.grad is not None


def test_a_replaced_forward_is_not_replaced_again() -> None:
    own = head()
    own.forward = mine = lambda input: input
    with thin_head(own, 3):
        assert own.forward is mine
    assert own.forward is mine


def test_the_head_is_itself_again_after_an_error() -> None:
    own = head()
    with pytest.raises(RuntimeError, match="stop"), thin_head(own, 3):
        raise RuntimeError("stop")
    assert "forward" not in own.__dict__


def test_a_model_s_logits_come_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    lm.model.requires_grad_(False)
    ids = torch.randint(5, 50, (2, 6))
    rows, cols = torch.tensor([0, 1, 1]), torch.tensor([5, 2, 3])
    wanted = lm.model(input_ids=ids).logits[rows, cols]
    used: list[int] = []
    true = thin._Thin.apply
    monkeypatch.setattr(thin, "_VOCABULARY", 1)
    monkeypatch.setattr(thin._Thin, "apply", lambda hidden, weight: used.append(len(hidden)) or true(hidden, weight))
    logits, _ = logits_at(lm, ids, rows, cols)
    assert used == [3]
    torch.testing.assert_close(logits, wanted)
