"""The options of PAC, as YAML writes them: how nodes are trained, the contrastive term, the locality term."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kedit.errors import KeditError, at_least
from kedit.methods.pac.rectify import Bias
from kedit.methods.pac.tracing.select import TraceConfig
from kedit.runtime.option_values import check_values

Objective = Literal["alternate", "joint"]


@dataclass
class ContrastConfig:
    """The contrastive term lambda L(y): T- is trained to say what the unedited model says (PAC, equation 7).

    Args:
        weight: lambda; 0 leaves the term out. Adam divides a gradient by its own size, so lambda alone has hardly an
            effect: `lr` has.
        lr: Learning rate of T-; null: that of T+, as in the released code, and with `shared_adam`. The default was
            chosen on validation records (docs/experiments/pac_smollm2.md).
        original: y: `forced` is the unedited model's argmax at every position of the new target (the released code),
            `greedy` is what it continues the prompt with by itself, as many tokens.
        theta: Weights at which L(y) is taken: `updated` are those with the changes of T+ and T- (the released code),
            `instead` those with the changes of T- alone (the paper's Theta').
        merge: Whether the changes of T- stay in the edited model.
    """

    weight: float = 0.1
    lr: float | None = 1e-4
    original: Literal["forced", "greedy"] = "forced"
    theta: Literal["updated", "instead"] = "updated"
    merge: bool = True

    def __post_init__(self) -> None:
        check_values(vars(self), "model.contrast")
        if self.weight < 0:
            raise KeditError(f"model.contrast.weight: {self.weight:g} is negative")
        if self.lr is not None and self.lr < 0:
            raise KeditError(f"model.contrast.lr: {self.lr:g} is negative")


@dataclass
class LocalityConfig:
    """A locality term that reaches T+: KL of what follows other prompts, from the unedited model to the edited one.

    The prompts are of kedit's own training facts (those that name a subject or a target of the run are left out), and
    the record's prompt with other subjects in the place of its own.

    Args:
        weight: Weight of the term; 0 (the published method) leaves it out. 5 was chosen on validation records
            (docs/experiments/pac_smollm2.md).
        prompts: How many are drawn for a step.
        facts: How many prompts of facts there are to draw from.
        others: How many other subjects in a record's own prompt; half of a step's prompts are of these. Records that
            name no subject have none.
        positions: At how many of a prompt's tokens the KL is taken, counted from its last.
        top: The KL runs over so many most probable tokens of the unedited model, and all others as one.
    """

    weight: float = 5.0
    prompts: int = 8
    facts: int = 256
    others: int = 8
    positions: int = 1
    top: int = 64

    def __post_init__(self) -> None:
        check_values(vars(self), "model.locality")
        if self.weight < 0:
            raise KeditError(f"model.locality.weight: {self.weight:g} is negative")
        for name, least in (("prompts", 1), ("facts", 1), ("others", 0), ("positions", 1), ("top", 1)):
            at_least(f"model.locality.{name}", getattr(self, name), least)


@dataclass
class TrainConfig:
    """How the nodes of an edit are trained.

    Args:
        lr: Adam's learning rate for T+.
        passes: How often every request is trained at most.
        mini_batch: Requests in a step.
        retrace: Passes after which the paths are traced again; 0: never within an edit batch.
        objective: `alternate`: a step on L(y*) and T+, then one on lambda L(y) and T- (the released code). `joint`:
            one step on the sum of both losses (the paper), whose gradient reaches T+ and T-.
        stop: Requests whose new target is the argmax already, at every token, are left out of a step; an edit batch
            ends when none is left.
        best: An edit batch of several requests ends with the changes of the pass after which most of them were
            answered, where later passes lost some (of equal ones, that of the lowest loss). They are all asked after
            every pass. false: with those of the last step, whatever it undid.
        rollback: Where after a pass fewer than this share of the requests are answered than were after the best one, a
            step was too large: the edit batch goes back to the best pass, and on from there with half the learning
            rates and Adam begun anew. Needs `best`. 0: never.
        margin: How many nats every target token must be ahead of all others for a request to count as answered.
        per_edit: Every request weighs the same in a loss; false: every target token does (the released code).
        shared_adam: One Adam trains T+ and T- and goes on when paths are traced again, so that nodes move by their
            momentum while they are masked (the released code). false: each side has its own, begun anew with the
            paths, and stands still while the other is trained.
        bias: Biases of models that have them: those of the selected keys and the value matrices' whole (`code`), the
            former alone (`masked`), or `none`.
        rehearse: With `scope: edit`, so many earlier requests of the run are drawn into every step; those that are no
            longer answered train with it (sequential regime, or an edit batch of several). Their nodes stand still.
        cached_inputs: Run the layers below the lowest of `trace.layers` once for every text, and not in every step.
            What enters that layer is kept for all texts of the run, d_model numbers a token.
        layer_weights: Learning rates follow the trace: a matrix whose paths score twice the mean gets twice `lr`.
    """

    lr: float = 1.4e-3
    passes: int = 24
    mini_batch: int = 8
    retrace: int = 0
    objective: Objective = "alternate"
    stop: bool = True
    best: bool = True
    rollback: float = 0.5
    margin: float = 0.0
    per_edit: bool = True
    shared_adam: bool = False
    bias: Bias = "none"
    rehearse: int = 0
    cached_inputs: bool = False
    layer_weights: bool = False

    def __post_init__(self) -> None:
        check_values(vars(self), "model.train")
        for name, least in (("passes", 1), ("mini_batch", 1), ("retrace", 0), ("rehearse", 0), ("margin", 0.0)):
            at_least(f"model.train.{name}", getattr(self, name), least)
        if not self.lr > 0:
            raise KeditError(f"model.train.lr: {self.lr:g} is not above 0")
        if not 0 <= self.rollback <= 1:
            raise KeditError(f"model.train.rollback: {self.rollback:g} is no share; give 0 to 1, 0 for never")
        if self.rollback and not self.best:
            raise KeditError(f"model.train.rollback: {self.rollback:g} needs model.train.best: true; give 0 without it")


def parity_train() -> TrainConfig:
    """The released run's (specs/pac.md 2 and 4)."""
    return TrainConfig(
        lr=1e-5,
        passes=12,
        mini_batch=2,
        retrace=2,
        stop=False,
        best=False,
        rollback=0.0,
        per_edit=False,
        shared_adam=True,
        bias="code",
    )


def released(
    scope: str, train: TrainConfig, contrast: ContrastConfig, locality: LocalityConfig
) -> tuple[TrainConfig, ContrastConfig, LocalityConfig]:
    """The released run's options in the place of defaults.

    Raises:
        KeditError: Options were given that it does not have.
    """
    if train == TrainConfig():
        train = parity_train()
    if replace(train, passes=12) != parity_train():
        raise KeditError("model.parity: the released run replaces model.train; give one of the two, not both")
    if scope == "edit":
        raise KeditError("model.parity: the released run traces an edit set, not each edit; use scope: batch")
    if locality != LocalityConfig() and locality.weight:
        raise KeditError(
            "model.parity: the released run has no locality term; leave model.locality.weight out, or at 0"
        )
    return train, contrast, replace(locality, weight=0.0)


def checked(trace: TraceConfig, train: TrainConfig, contrast: ContrastConfig) -> ContrastConfig:
    """Options that go together; the contrastive term's without a learning rate where one Adam has none of its own.

    Raises:
        KeditError: Two of them do not; names one.
    """
    if train.shared_adam and contrast.theta == "instead":
        raise KeditError("model.contrast.theta: instead keeps T- apart; it needs train.shared_adam: false")
    if train.shared_adam and contrast.lr == ContrastConfig().lr:
        contrast = replace(contrast, lr=None)  # left out
    if train.shared_adam and contrast.lr is not None:
        raise KeditError("model.contrast.lr: one Adam has one learning rate; it needs train.shared_adam: false")
    if train.cached_inputs and not (trace.layers and min(trace.layers) > 0):
        raise KeditError("model.train.cached_inputs: nodes may be in layer 0; name higher ones in trace.layers")
    if train.layer_weights and trace.node_source != "traced":
        raise KeditError("model.train.layer_weights: they come from the trace; use trace.node_source: traced")
    return contrast
