"""`PhaseRunner`: the phases of one edit, one after the other, in step with the run's other processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kedit.delta.delta import Delta
from kedit.errors import KeditError
from kedit.methods.base.phase import Barrier, EditProgram, Phase
from kedit.runtime import distributed
from kedit.runtime.room import SMALLER


class PhaseRunner:
    """Runs an algorithm from phase to phase.

    Every process takes every step of an epoch, as Lightning wants it: one that has to wait for others takes steps in
    which nothing is optimised.

    Args:
        edit: The algorithm; None where this process has nothing to edit.
        changed: Called when a phase has begun, whose optimiser is then needed, and after the last one.

    Attributes:
        phase: The phase under way; None after the last.
        deltas: What the algorithm returned.
    """

    def __init__(self, edit: EditProgram | None, changed: Callable[[], None]) -> None:
        self.phase: Phase | None = None
        self.deltas: list[Delta | None] = []
        self._edit, self._changed = edit, changed
        self._start = 0
        self.full = False  # memory ran out in a step of the phase

    def begin(self) -> None:
        """On to the first phase."""
        self._next(0)

    def advance(self, step: int) -> bool:
        """Moves on where a phase has ended before `step`; says whether any process has a step to take."""
        phase = self.phase
        if self.full or (phase is not None and (phase.done or step - self._start >= phase.steps)):
            self._next(step)
        if distributed.world_size() == 1:
            return self.phase is not None
        while distributed.all_true(self.phase is None or isinstance(self.phase, Barrier)):
            if self.phase is None:
                return False
            self._next(step)
        return True

    # -- a step: where memory runs out in it, its rest is left out; the algorithm hears of it before the next one --

    def loss(self) -> Tensor | None:
        """The phase's loss; None where there is none."""
        try:
            return None if self.phase is None else self.phase.loss()
        except torch.OutOfMemoryError:
            self.full = True
        return None

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Its backward pass."""
        try:
            loss.backward()
        except torch.OutOfMemoryError:
            self.full = True
        if self.full:
            optimizer.zero_grad()
            first = optimizer.param_groups[0]["params"][0]
            first.grad = torch.zeros_like(first)  # a gradient scaler expects one

    def before_step(self) -> None:
        """The phase's masks."""
        if self.phase is not None and not self.full:
            self.phase.before_step()

    def after_step(self, optimizer: torch.optim.Optimizer) -> Mapping[str, float | Tensor] | None:
        """Its projections, clamps and freezing; figures of the step, None where none was taken."""
        if self.phase is None or self.full:
            return None
        self.phase.after_step()
        optimizer.zero_grad()  # Lightning would keep the gradients during the next forward pass
        return self.phase.logs()

    def finish(self) -> None:
        """Runs the algorithm to its end, without further steps."""
        while self._edit is not None:
            self._next(0)

    def _next(self, step: int) -> None:
        """On to the next phase that has steps to take, or to the end."""
        while self._edit is not None:
            try:
                if self.full:
                    self.full, self.phase = False, None  # what the phase holds can be freed
                    self.phase = self._edit.throw(torch.OutOfMemoryError("in a step"))
                else:
                    self.phase = next(self._edit)
            except StopIteration as stop:
                self.deltas = stop.value
                self._edit = self.phase = None
                self._changed()  # so that the last phase's optimiser does not outlive it
                return
            except torch.OutOfMemoryError as error:
                raise KeditError(f"out of memory while editing. {SMALLER}") from error
            if self.phase.steps > 0 and not self.phase.done:
                self._start = step
                self._changed()
                return
