"""`AllParameters`: every parameter of a model in training (Full-C), and the memory that this needs.

The weights themselves run, so that what is trained is written into them after each step and taken back at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kedit.delta.delta import Delta
from kedit.delta.parameters import ParameterChange, parameter
from kedit.errors import KeditError
from kedit.model.lm import LM
from kedit.runtime.memory import free_bytes, gigabytes

log = logging.getLogger(__name__)


def memory_needed(lm: LM) -> dict[str, int]:
    """Bytes that training every parameter takes besides the model, by what they are for; activations not counted."""
    parameters = list(lm.model.parameters())  # a tied head once
    n = sum(p.numel() for p in parameters)
    own = sum(p.nbytes for p in parameters)
    half = sum(p.nbytes for p in parameters if p.element_size() < 4)  # these have gradients in their own type too
    return {"backup of the weights": own, "changes": 4 * n, "gradients": 4 * n + half, "Adam's two moments": 8 * n}


def check_memory(lm: LM) -> None:
    """Says how much memory is needed, before any of it is taken.

    Raises:
        KeditError: There is less of it; says how much.
    """
    needed = memory_needed(lm)
    total, free = sum(needed.values()), free_bytes(lm.device)
    parts = ", ".join(f"{name} {gigabytes(n)}" for name, n in needed.items())
    there = "" if free is None else f"; {gigabytes(free)} are free on {lm.device}"
    log.info("training every parameter takes %s besides the model (%s)%s", gigabytes(total), parts, there)
    if free is not None and total > free:
        raise KeditError(
            f"model.parameters: training all of {lm.name} takes {gigabytes(total)} besides the model, and "
            f"{gigabytes(free)} are free on {lm.device}; use a smaller model, or parameters: matrices"
        )


class AllParameters:
    """Changes of every parameter, in float32, and the weights that run with them.

    Args:
        lm: The model. A parameter that several modules share is trained once.
        bound: Most that an entry may change; None: any amount.
        weight_decay: Adam's L2 penalty, on the weights as they are changed.
    """

    def __init__(self, lm: LM, bound: float | None = None, weight_decay: float = 0.0) -> None:
        self.bound, self.weight_decay = bound, weight_decay
        self._model = lm.model
        self._names = [tuple(name.rpartition(".")[::2]) for name, _ in lm.model.named_parameters()]
        self._weights = list(lm.model.parameters())
        self._before: list[Tensor] = []
        self._changes = [_zeros(p) for p in self._weights]

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser trains."""
        return self._changes

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Inside, the weights take gradients and follow the changes; afterwards they are the old ones, bit for bit."""
        self._before = [p.detach().clone() for p in self._weights]
        frozen = [p for p in self._weights if not p.requires_grad]
        try:
            for p in frozen:
                p.requires_grad_(True)
            yield
        finally:
            for p in frozen:
                p.requires_grad_(False)
            with torch.no_grad():
                for p, before in zip(self._weights, self._before, strict=True):
                    p.grad = None
                    p.copy_(before)
            self._before = []

    @contextmanager
    def installed(self, lanes: Sequence[int]) -> Iterator[None]:
        """The weights hold the changes already; all rows run with them."""
        yield

    @torch.no_grad()
    def before_step(self, lanes: Sequence[int]) -> None:
        """Hands the weights' gradients to the changes, one after the other, and decays the weights."""
        for p, change in zip(self._weights, self._changes, strict=True):
            change.grad = None if p.grad is None else p.grad.to(change.dtype)
            p.grad = None
            if self.weight_decay and change.grad is not None:
                change.grad.add_(p, alpha=self.weight_decay)

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamps every entry to the bound, and writes the weights anew."""
        for p, before, change in zip(self._weights, self._before, self._changes, strict=True):
            if self.bound is not None:
                change.clamp_(-self.bound, self.bound)
            p.copy_(before + change)

    def delta(self, lane: int = 0) -> Delta:
        """The changes, by module; a linear map's weight as `[d_out, d_in]`."""
        found: dict[str, dict[str, Tensor]] = {}
        for (path, name), stored, change in zip(self._names, self._weights, self._changes, strict=True):
            module = self._model.get_submodule(path)
            turned = parameter(module, name)(module) is not stored  # a Conv1D's
            own = change.detach().float()
            found.setdefault(path, {})[name] = own.T.contiguous() if turned else own
        return Delta({path: ParameterChange(changes) for path, changes in found.items()})


def _zeros(p: Tensor) -> nn.Parameter:
    """A change of nothing yet, in the parameter's storage."""
    dtype = torch.promote_types(p.dtype, torch.float32)
    return nn.Parameter(torch.zeros(p.shape, dtype=dtype, device=p.device))
