"""What a PAC edit changes: the slices of T+ and those of T-, and the optimiser that trains both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from kedit.delta.delta import Delta
from kedit.methods.pac.rectify import Bias, Change, Part, Rectifier
from kedit.methods.pac.stacked import Layout, stacked
from kedit.methods.pac.tracing.select import Selection
from kedit.methods.pac.tracing.sites import Site
from kedit.model.lm import LM

Theta = Literal["updated", "instead"]
Changes = list[dict[Site, Change]]
"""Of both sides, or of the one that is shared."""


class TrainableNodes:
    """The changes of T+ and of T-, each trained by steps of its own or both in one.

    Args:
        lm: The model, frozen.
        bias: Which biases train (see `Rectifier`).
        lr: Adam's learning rate for T+.
        contrast_lr: That for T-; None: there is no contrastive term, and T- is not trained.
        shared: As the released code: one Adam for T+ and T-, whose entries move on by their momentum while the
            others are trained, and which goes on over selections. False: a side that is not trained does not move.
        theta: What the loss of T- sees: `updated`: the changes of both sides; `instead`: those of T- alone (and that of
            T+ those of T+ alone).

    Attributes:
        stacked: Whether the changes of both sides run as one stack (kedit/methods/pac/stacked.py): everywhere but on a
            CPU, where nothing waits for launches, and where results are those of the sides one after the other, to the
            bit.
    """

    def __init__(
        self, lm: LM, bias: Bias, lr: float, contrast_lr: float | None, shared: bool, theta: Theta = "updated"
    ) -> None:
        self.lr, self.contrast_lr, self.shared, self.theta = lr, contrast_lr, shared, theta
        self.lm, self.critical = lm, Rectifier(lm, bias)
        self.contrast = self.critical if shared else Rectifier(lm, bias)
        self.stacked = lm.device.type != "cpu"
        self._layouts: dict[tuple[Part, ...], Layout] = {}
        self.optimizer: torch.optim.Adam | None = None
        self.turn: tuple[Part, ...] = ("critical",)
        self._kept: Changes = []

    def take(self, selection: Selection, weights: Mapping[Site, float] | None = None) -> torch.optim.Adam:
        """Trains these nodes from now on, with the optimiser that is there or a first one.

        Args:
            selection: T+ and T-.
            weights: Of the learning rate of every site of T+; None: 1.

        Returns:
            The optimiser.
        """
        nothing = {site: nodes[:0] for site, nodes in selection.contrast.items()}
        contrasts = self.contrast_lr is not None
        self._layouts.clear()
        if weights is not None:
            self.critical.part()
        both = contrasts and self.shared
        self.critical.take(selection if both else Selection(selection.critical, nothing), self.optimizer)
        if contrasts and not self.shared:
            self.contrast.take(Selection(selection.contrast, nothing), self.optimizer)
        if self.optimizer is None:
            groups = [
                {"params": [parameter], "lr": self.lr, "site": site} for site, parameter in self.critical.named()
            ] if weights else [{"params": self.critical.parameters(), "lr": self.lr}]  # fmt: skip
            if not self.shared and self.contrast_lr is not None:
                groups.append({"params": self.contrast.parameters(), "lr": self.contrast_lr})
            self.optimizer = torch.optim.Adam(groups, lr=self.lr)
        for group in self.optimizer.param_groups:
            if weights and "site" in group:
                group["lr"] = self.lr * weights[group["site"]]
        return self.optimizer

    def begin(self) -> None:
        """A new edit on top of the changes so far: the next `take` begins with a fresh optimiser."""
        self.forget()
        self._kept = self.changes()

    def forget(self) -> None:
        """The next `take` begins with a fresh optimiser; the changes stay."""
        self.optimizer = None

    def slow(self, factor: float) -> None:
        """Learning rates times `factor`, and Adam's moments begun anew, until the next optimiser."""
        assert self.optimizer is not None
        self.optimizer.state.clear()
        for group in self.optimizer.param_groups:
            group["lr"] *= factor

    def undo(self) -> None:
        """Puts the changes back to what they were at the last `begin`."""
        self.reset(self._kept)

    def changes(self) -> Changes:
        """A copy of the changes as they are now, for `reset`."""
        return [side.changes() for side in self._sides]

    def reset(self, changes: Changes) -> None:
        """Puts the changes back to a copy of earlier ones; the optimiser stays as it is."""
        for side, kept in zip(self._sides, changes, strict=True):
            side.reset(kept)

    def train(self, *parts: Part) -> None:
        """Which sides the next loss reaches."""
        self.turn = parts
        if not self.shared:
            for part, side in (("critical", self.critical), ("contrast", self.contrast)):
                for parameter in side.parameters():
                    parameter.requires_grad_(part in parts)

    @contextmanager
    def installed(self, part: Part, learn: bool = True) -> Iterator[None]:
        """Inside, the model runs with the changes that the loss of `part` sees.

        Args:
            part: Whose loss.
            learn: Whether a backward pass gives the changes gradients; false: they count as the model's.
        """
        seen = self._seen(part)
        with ExitStack() as stack:
            if self._stacks(seen):
                names = tuple(seen)
                if names not in self._layouts:
                    self._layouts[names] = Layout([side.index for side in seen.values()], self.lm.device)
                rows = [side.lines.whole() for side in seen.values()]
                rows = rows if learn else [own.detach() for own in rows]
                stack.enter_context(stacked(self.critical.modules, self._layouts[names], rows, self.lm.dtype))
            else:
                for side in seen.values():
                    stack.enter_context(side.installed(learn))
            yield

    def _seen(self, part: Part) -> dict[Part, Rectifier]:
        """The sides whose changes the loss of `part` sees, each once."""
        if self.shared:
            return {"critical": self.critical}
        both: dict[Part, Rectifier] = {"critical": self.critical, "contrast": self.contrast}
        return {name: side for name, side in both.items() if name == part or self.theta == "updated"}

    def _stacks(self, seen: Mapping[Part, Rectifier]) -> bool:
        """Whether the nodes of all these sides run stacked: not with biases, nor where autocast picks the types."""
        plain = not any(side.biases for side in seen.values()) and any(side.index for side in seen.values())
        return self.stacked and plain and not torch.is_autocast_enabled(self.lm.device.type)

    def before_step(self) -> None:
        """Leaves no gradient to what is not trained; call it between the backward pass and the step."""
        if self.shared:
            self.critical.mask(*self.turn)
        else:
            for side in self._sides:
                side.mask("critical")  # nodes of earlier selections keep their changes

    def gradient_norm(self) -> Tensor:
        """Norm of the gradients as they are, a scalar."""
        norms = [parameter.grad.norm() for parameter in self._parameters() if parameter.grad is not None]
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def delta(self, merge: bool = True) -> Delta:
        """The changes as they are now; those of T- only with `merge`."""
        return Delta.concat([side.delta() for side in (self._sides if merge else [self.critical])])

    @property
    def _sides(self) -> list[Rectifier]:
        return [self.critical] if self.shared else [self.critical, self.contrast]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for side in self._sides for parameter in side.parameters()]
