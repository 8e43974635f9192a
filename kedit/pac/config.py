"""The options of PAC's training, as YAML writes them: the contrastive term and the locality term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kedit.errors import KeditError


@dataclass
class ContrastConfig:
    """The contrastive term lambda L(y): T- is trained to say what the unedited model says (PAC, equation 7).

    Args:
        weight: lambda; 0 leaves the term out. Adam divides a gradient by its own size, so lambda alone has hardly an
            effect: `lr` has.
        lr: Learning rate of T-; null: that of T+.
        original: y: `forced` is the unedited model's argmax at every position of the new target (the released code),
            `greedy` is what it continues the prompt with by itself, as many tokens.
        theta: Weights at which L(y) is taken: `updated` are those with the changes of T+ and T- (the released code),
            `instead` those with the changes of T- alone (the paper's Theta').
        merge: Whether the changes of T- stay in the edited model.
    """

    weight: float = 0.1
    lr: float | None = None
    original: Literal["forced", "greedy"] = "forced"
    theta: Literal["updated", "instead"] = "updated"
    merge: bool = True

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise KeditError(f"model.contrast.weight: {self.weight:g} is negative")
        if self.lr is not None and self.lr < 0:
            raise KeditError(f"model.contrast.lr: {self.lr:g} is negative")


@dataclass
class KeepConfig:
    """A locality term that reaches T+: KL of what follows other prompts, from the unedited model to the edited one.

    The prompts are of kedit's own training facts (those that name a subject or a target of the run are left out), and
    the record's prompt with other subjects in the place of its own.

    Args:
        weight: Weight of the term; 0 (the published method) leaves it out.
        prompts: How many are drawn for a step.
        facts: How many prompts of facts there are to draw from.
        others: How many other subjects in a record's own prompt; half of a step's prompts are of these. Records that
            name no subject have none.
        top: The KL runs over so many most probable tokens of the unedited model, and all others as one.
    """

    weight: float = 0.0
    prompts: int = 8
    facts: int = 256
    others: int = 8
    top: int = 64

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise KeditError(f"model.keep.weight: {self.weight:g} is negative")
        for name, least in (("prompts", 1), ("facts", 1), ("others", 0), ("top", 1)):
            if getattr(self, name) < least:
                raise KeditError(f"model.keep.{name}: {getattr(self, name)} is less than {least}")
