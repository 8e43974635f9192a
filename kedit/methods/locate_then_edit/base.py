"""`LocateThenEdit`: what all methods share that optimise v* and then solve for the weights: options, contexts."""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kedit.causal_tracing import chosen_layers
from kedit.covariance import StatsConfig
from kedit.data.batching import suffix_length
from kedit.errors import KeditError, at_least
from kedit.keyvalue import NLL, KLDivergence, Term, ValueOptimization, WeightDecay
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.keyvalue.lane_memory import measured_lanes
from kedit.keyvalue.published import Published
from kedit.methods.base.module import EditingModule
from kedit.model.tokenization import encode_subject, own_bos, surely_fits
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.memory import free_bytes, gigabytes
from kedit.runtime.room import VALUES
from kedit.text.prompts import slots

log = logging.getLogger(__name__)

AUTO = "auto"
"""What an option that names layers says where a trace is to choose them."""

MoreTerms = Callable[[Sequence[EditRecord]], Sequence[Term]]
MoreInfo = Callable[[EditRecord], dict[str, Any]]


class LocateThenEdit(EditingModule):
    """Base of the methods with a v*: its options, the context templates, and both in results and checkpoints.

    Args:
        v_lr: Adam's learning rate for v*; null takes the model's published value.
        v_num_grad_steps: Evaluations of the v* loss (one more than updates); null: published value.
        v_weight_decay: Factor of ||delta|| / ||v_init||^2; null: published value.
        clamp_norm_factor: Bound of ||delta|| / ||v_init||; null: published value.
        kl_factor: Factor of the KL term that keeps "{subject} is a" as it was.
        stop_loss: v* is done when its loss falls below this; 0 always takes every step.
        bare_weight: Share of the bare prompt in the mean over contexts that is v*'s loss; null: all alike.
        contexts: Texts put before the prompt while editing.
        stats: Where the covariance comes from.
    """

    def __init__(
        self,
        v_lr: float | None = None,
        v_num_grad_steps: int | None = None,
        v_weight_decay: float | None = None,
        clamp_norm_factor: float | None = None,
        kl_factor: float = 0.0625,
        stop_loss: float = 5e-2,
        bare_weight: float | None = None,
        contexts: ContextConfig = ContextConfig(),
        stats: StatsConfig = StatsConfig(),
    ) -> None:
        super().__init__()
        for option, value, least in (
            ("v_lr", v_lr, 0.0),
            ("v_num_grad_steps", v_num_grad_steps, 2),
            ("v_weight_decay", v_weight_decay, 0.0),
            ("clamp_norm_factor", clamp_norm_factor, 0.0),
            ("kl_factor", kl_factor, 0.0),
            ("stop_loss", stop_loss, -math.inf),
        ):
            at_least(f"model.{option}", value, least)
        self.v_lr, self.v_num_grad_steps = v_lr, v_num_grad_steps
        self.v_weight_decay, self.clamp_norm_factor = v_weight_decay, clamp_norm_factor
        if bare_weight is not None and not 0 <= bare_weight <= 1:
            raise KeditError(f"model.bare_weight: {bare_weight} is not between 0 and 1")
        self.kl_factor: float | None = kl_factor
        self.stop_loss, self.bare_weight = stop_loss, bare_weight
        self.context_config, self.stats_config = contexts, stats
        self.contexts: list[str] = []
        self._told = False  # that some prompts are edited without contexts
        self._measured = False  # how much memory a lane takes
        self._added: list[tuple[MoreTerms, MoreInfo]] = []
        self._choice: dict[str, Any] = {}  # how the layers were chosen, where the user asked for it

    published: Published
    """The paper's values, by model, of the options that a user may leave null."""

    whitened = True
    """Whether REP's released code hands its adapter C^-1 k* of this editor (false: k* itself)."""

    @property
    @abstractmethod
    def edited_layers(self) -> list[int]:
        """Layers that an edit changes, ascending; known after `setup`."""
        raise NotImplementedError

    def edit_key(self, keys: Tensor) -> Tensor:
        """k*, the key that is edited: from the keys of all contexts `[n_contexts, d_in]` to `[d_in]`."""
        return keys.mean(0)

    def choose_layers(self, count: int, option: str) -> list[int]:
        """The layers that a trace of the unedited model names (`kedit.causal_tracing.auto`).

        Args:
            count: How many.
            option: Its full name, for messages.

        Raises:
            KeditError: The model knows too few facts, or its MLPs give nothing back.
        """
        chosen = chosen_layers(self.lm, count, option, {record.request.text for record in self._data.records})
        self._choice = {"chosen_layers": chosen.card}
        return chosen.layers

    def start(self) -> None:
        """Contexts of the unedited model."""
        if not self.contexts:  # a resumed run has them
            self.contexts = distributed.from_first(lambda: context_templates(self.lm, self.context_config, self.seed))

    def check_fit(self, record: EditRecord) -> None:
        """The prompt behind every context."""
        LocateThenEdit.start(self)
        r = record.request
        if len(self.contexts) > 1 and not self._told and own_bos(self.lm, r.about(r.named())) is None:
            self._told = True
            log.warning(
                "%s: its prompt brings special tokens of its own (a chat template's?): no context of the edit is put "
                "before it, nor before any such prompt of this run",
                r.name,
            )
        for context in self.contexts:
            if not surely_fits(self.lm, context, r.prompt, r.named(), r.target_new):
                name = f"{r.name}, behind a context of the edit"
                encode_subject(self.lm, r.prompt, r.named(), r.target_new, context, name, r.joiner, True)

    def terms(self, records: Sequence[EditRecord]) -> list[Term]:
        """The loss of v* (baselines 1.0, step 4) for some records, a lane each, with what a method adds to it."""
        kl, decay = KLDivergence(required(self.kl_factor)), WeightDecay(required(self.v_weight_decay))
        return [NLL(), kl, decay, *self.more_terms(records)]

    def more_terms(self, records: Sequence[EditRecord]) -> list[Term]:
        """The terms that were added to v*'s loss for some records, a lane each."""
        return [term for more, _ in self._added for term in more(records)]

    def add_terms(self, terms: MoreTerms, info: MoreInfo) -> None:
        """Gives v*'s loss further terms (STEAM).

        Args:
            terms: Gives them for some records, a lane each.
            info: What results should say of a record's v* beside the figures of its lane.
        """
        self._added.append((terms, info))

    def more_info(self, record: EditRecord) -> dict[str, Any]:
        """What results should say of a record's v* because of the terms that were added."""
        return {name: value for _, info in self._added for name, value in info(record).items()}

    def method_state(self) -> dict[str, Any]:
        """The contexts, so that a resumed run edits with the same, and the lanes that fit, where they were fewer."""
        most = self.lm.room.most(VALUES)
        return {"contexts": self.contexts} | ({} if most is None else {"lanes": most})

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes the contexts back."""
        contexts = state.get("contexts")
        if not isinstance(contexts, list) or not all(isinstance(c, str) and slots(c) == 1 for c in contexts):
            raise KeditError("this checkpoint is damaged: its contexts are no list of texts with one {} each")
        self.contexts = contexts
        if (most := state.get("lanes")) is not None:
            if type(most) is not int or most < 1:
                raise KeditError("this checkpoint is damaged: its lanes are no number above 0")
            self.lm.room.allow(VALUES, most)
            self._measured = True

    def measure_lanes(
        self, records: Sequence[EditRecord], make: Callable[[Sequence[EditRecord]], ValueOptimization]
    ) -> None:
        """On a GPU, before the first v* of several requests: how many fit side by side, where the user says nothing.

        Args:
            records: Those that would be side by side.
            make: Gives the optimisation of some.
        """
        free = free_bytes(self.lm.device) if self.lm.device.type == "cuda" else None
        if free is None or self.lanes or self._measured or len(records) < 3:
            return
        self._measured = True
        longest = sorted(records, key=suffix_length)[-2:]
        try:
            most, each = measured_lanes(self.lm, lambda n: make(longest[:n]), free, len(records))
        except torch.OutOfMemoryError:
            return  # what runs next says so
        if most < len(records):
            self.lm.room.allow(VALUES, most)
            log.info(
                "v* of %d requests fit side by side, of %d: a lane takes %s (edit.lanes sets a number)",
                most, len(records), gigabytes(each),
            )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter of v* that was used, defaults filled in."""
        return super().describe() | {
            "v_lr": self.v_lr,
            "v_num_grad_steps": self.v_num_grad_steps,
            "v_weight_decay": self.v_weight_decay,
            "clamp_norm_factor": self.clamp_norm_factor,
            "kl_factor": self.kl_factor,
            "stop_loss": self.stop_loss,
            "bare_weight": self.bare_weight,
            "contexts": self.contexts,
            **self._choice,
        }


def lane_info(lanes: ValueOptimization, i: int) -> dict[str, Any]:
    """Figures of one lane of a v* optimisation, JSON-able: what is not finite is None."""
    figures = {
        "loss": float(lanes.total[i]),
        **{name: float(value[i]) for name, value in lanes.terms.items()},
        "v_delta_over_init": float(lanes.delta[i].detach().norm() / lanes.objective.v_init[i].norm()),
    }
    steps = {"steps": int(lanes.steps[i])}
    return {name: finite(value) for name, value in figures.items()} | steps


def lane_error(lanes: ValueOptimization, i: int) -> str | None:
    """Why a lane has no v*, or None where it has one."""
    if not bool(lanes.failed[i]):
        return None
    return f"v* or its loss is not finite after {int(lanes.steps[i])} steps"


def finite(value: float) -> float | None:
    """`value` for JSON, which knows no NaN and no infinity."""
    return value if math.isfinite(value) else None


def required(value: float | None) -> float:
    """A hyperparameter that `setup` has filled in."""
    if value is None:
        raise RuntimeError("hyperparameters are filled in by setup()")
    return value
