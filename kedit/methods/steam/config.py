"""The options of latent positioning and of the alignment term, as YAML writes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from kedit.errors import KeditError, at_least
from kedit.runtime.option_values import check_values

Recall = Literal["greedy", "first_top1", "first_topk"]
Centre = Literal["none", "objects", "generic"]
RECALLS: tuple[Recall, ...] = ("greedy", "first_top1", "first_topk")


@dataclass
class AnchorConfig:
    """Where the anchor of a new object comes from: the mean state of the model where it says that object by itself.

    Args:
        records: Further files of records, in any form of CounterFact (`.json`) or kedit's own (`.jsonl`), beside the
            run's own data set; only what they say of the unedited world is taken.
        knowledge: Knowledge bases: `.jsonl`, or tab-separated subject, relation, object id, object (docs/anchors.md).
        templates: JSON file, relation -> templates, for `knowledge`.
        n_max: Most references of an object.
        n_min: Fewer than this, and the next source is asked: looser names of the object, then `in_context`.
        candidates: Most references that the model is asked about for each object.
        recall: Which references count as known: `greedy`, the model continues with the whole object; `first_top1`, with
            its first token; `first_topk`, that token is among the 5 most probable. Relaxed in this order where fewer
            than `n_min` pass, at last to the `n_min` best ranked; results say which it was.
        in_context: Where no reference is left, the state after the model was told the fact. false: such edits are
            made without alignment.
        exclude_own_attribute: Leave out the record's own attribute prompts, which describe what consistency
            compares with.
        macro_mean: Mean of the relations' means instead of the mean over references.
        seed: Of the draw.
    """

    records: list[str] = field(default_factory=list)
    knowledge: list[str] = field(default_factory=list)
    templates: str | None = None
    n_max: int = 32
    n_min: int = 4
    candidates: int = 96
    recall: Recall = "greedy"
    in_context: bool = True
    exclude_own_attribute: bool = False
    macro_mean: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_values(vars(self), "model.anchors")
        for name, least in (("n_max", 1), ("n_min", 1), ("candidates", 1)):
            at_least(f"model.anchors.{name}", getattr(self, name), least)
        if self.n_min > self.n_max:
            raise KeditError(f"model.anchors.n_min: {self.n_min} is more than n_max, {self.n_max}")
        if self.candidates < self.n_max:
            raise KeditError(f"model.anchors.candidates: {self.candidates} is less than n_max, {self.n_max}")


@dataclass
class AlignConfig:
    """The alignment loss: 1 - cosine between the edited state and the anchor, where the object is predicted.

    Args:
        weighting: `grad_ratio`: lambda = `ratio` * |gradient of NLL| / |gradient of the alignment loss| at the first
            step of each edit, at most 100. `fixed`: lambda = `weight`, as published.
        ratio: For `grad_ratio`.
        weight: lambda, for `fixed`; 0 leaves the term out.
        schedule: `constant`, or `linear_warmup`: lambda grows from 0 to its value over half of the steps.
        layers: `mid`: 40 % to 70 % of the depth. `auto`: the quarter of the depth in which anchors tell objects apart
            best (docs/anchors.md). Or a list. All must lie above the edited layers.
        center: What is subtracted from both sides: `none`, as published; `objects`, the mean over the run's anchors;
            `generic`, the mean over neutral prompts. It takes away what all answers have in common.
        align_on: `all` contexts of the request, or its `bare` prompt alone.
        patience: An edit whose other terms have reached `stop_loss` goes on until its alignment loss has not improved
            by more than `tolerance` for so many steps.
        tolerance: See `patience`.
    """

    weighting: Literal["grad_ratio", "fixed"] = "grad_ratio"
    ratio: float = 0.1
    weight: float = 10.0
    schedule: Literal["constant", "linear_warmup"] = "constant"
    layers: Literal["mid", "auto"] | list[int] = "mid"
    center: Centre = "none"
    align_on: Literal["all", "bare"] = "all"
    patience: int = 5
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_values(vars(self), "model.align")
        for name in ("ratio", "weight", "patience", "tolerance"):
            at_least(f"model.align.{name}", getattr(self, name), 0)

    @property
    def off(self) -> bool:
        """lambda is 0 for every edit: the editor is left as it is."""
        return self.ratio == 0 if self.weighting == "grad_ratio" else self.weight == 0
