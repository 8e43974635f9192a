"""What ROME and R-ROME share: one layer, one v* per request, a rank-one update from C^-1 k."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from kedit.arch import check_layers, weight
from kedit.bars import stages
from kedit.batch import EditBatch, Outcome
from kedit.contexts import ContextConfig, context_templates
from kedit.defaults import value_defaults
from kedit.delta import Delta, Factors
from kedit.errors import KeditError
from kedit.lm import LMConfig
from kedit.methods.base import EditingModule, Regime
from kedit.methods.phases import Edit, ValuePhase
from kedit.stats import Covariance, StatsConfig, covariances
from kedit.values import NLL, KLDivergence, ValueLanes, ValueObjective, WeightDecay


class RankOne(EditingModule):
    """Base of ROME and R-ROME; they differ in `solve` alone.

    Args:
        lm: The model to edit.
        regime: `single`: each request on the unedited model. `sequential`: edits accumulate.
        layer: Edited layer; null takes the published layer of the model, or 17 % of its depth.
        v_lr: Adam's learning rate for v*; null takes the model's published value.
        v_num_grad_steps: Evaluations of the v* loss (one more than updates); null: published value.
        v_weight_decay: Factor of ||delta|| / ||v_init||^2; null: published value.
        clamp_norm_factor: Bound of ||delta|| / ||v_init||; null: published value.
        kl_factor: Factor of the KL term that keeps "{subject} is a" as it was.
        stop_loss: v* is done when its loss falls below this; 0 always takes every step.
        mom2_adjustment: Use the covariance of keys, u = C^-1 k. False takes u = k (C = I), as several
            published configurations do.
        contexts: Texts put before the prompt while editing.
        stats: Where the covariance comes from.
        lanes: Requests optimised side by side in the single regime; 0 lets the machine decide.
        seed: Every edit batch seeds itself from this and its number.
    """

    regimes = ("single", "sequential")

    def __init__(
        self,
        lm: LMConfig = LMConfig(),
        regime: Regime = "single",
        layer: int | None = None,
        v_lr: float | None = None,
        v_num_grad_steps: int | None = None,
        v_weight_decay: float | None = None,
        clamp_norm_factor: float | None = None,
        kl_factor: float = 0.0625,
        stop_loss: float = 5e-2,
        mom2_adjustment: bool = True,
        contexts: ContextConfig = ContextConfig(),
        stats: StatsConfig = StatsConfig(),
        lanes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(lm=lm, regime=regime, lanes=lanes, seed=seed)
        for option, value, least in (
            ("v_lr", v_lr, 0.0),
            ("v_num_grad_steps", v_num_grad_steps, 2),
            ("v_weight_decay", v_weight_decay, 0.0),
            ("clamp_norm_factor", clamp_norm_factor, 0.0),
            ("kl_factor", kl_factor, 0.0),
        ):
            if value is not None and value < least:
                raise KeditError(f"model.{option}: {value} is less than {least}")
        self.layer, self.v_lr, self.steps = layer, v_lr, v_num_grad_steps
        self.weight_decay, self.clamp = v_weight_decay, clamp_norm_factor
        self.kl_factor, self.stop_loss = kl_factor, stop_loss
        self.mom2_adjustment = mom2_adjustment
        self.context_config, self.stats_config = contexts, stats
        self.contexts: list[str] = []
        self.covariance: Covariance | None = None

    def setup(self, stage: str) -> None:
        """Fills in the model's own defaults and checks the layer before anything is computed."""
        d = value_defaults(self.lm)
        self.layer = d.layer if self.layer is None else self.layer
        check_layers(self.lm.arch, [self.layer], "model.layer")
        self.v_lr = d.lr if self.v_lr is None else self.v_lr
        self.steps = d.steps if self.steps is None else self.steps
        self.weight_decay = d.weight_decay if self.weight_decay is None else self.weight_decay
        self.clamp = d.clamp if self.clamp is None else self.clamp
        self.steps_per_batch = self.steps - 1
        super().setup(stage)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.regime == "sequential" and data.batch_size != 1:
            raise KeditError(
                f"data.batch_size: {type(self).__name__} edits one request at a time, not {data.batch_size}"
            )

    def start(self) -> None:
        """Contexts and covariance, both of the unedited model."""
        if not self.contexts:  # a resumed run has them
            self.contexts = context_templates(self.lm, self.context_config)
        if self.mom2_adjustment:
            with stages() as report:
                found = covariances(self.lm, [self._layer], self.stats_config, progress=report)
            self.covariance = found[self._layer].to(self.device)

    def edit(self, batch: EditBatch) -> Edit:
        """v* of every request by gradient, then one closed form each (ROME's section 3.1; baselines 1.3)."""
        objective = ValueObjective(
            self.lm,
            [record.request for record in batch.records],
            self.contexts,
            self._layer,
            site="mlp",
            terms=[NLL(), KLDivergence(self.kl_factor), WeightDecay(_known(self.weight_decay))],
        )
        lanes = ValueLanes(objective, self.stop_loss, _known(self.clamp))
        yield ValuePhase(lanes, _known(self.v_lr), int(_known(self.steps)))
        lanes.close()
        keys, values = (t.double() for t in objective.keys_and_values())
        v_star = lanes.v_star.double()
        deltas: list[Delta | None] = []
        for i, outcome in enumerate(batch.outcomes):
            outcome.info = lane_info(lanes, i)
            if bool(lanes.failed[i]):
                outcome.error = f"v* or its loss is not finite after {int(lanes.steps[i])} steps"
                deltas.append(None)
            else:
                deltas.append(self._delta(keys[i], values[i], v_star[i], outcome))
        return deltas

    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The closed form.

        Args:
            keys: Keys of the contexts, the bare prompt first, `[n_contexts, d_in]`.
            values: Outputs of the layer for them, `[n_contexts, d_model]`.
            v_star: The value wanted, `[d_model]`.
            direction: C^-1 times the mean key, `[d_in]`.
        """
        raise NotImplementedError

    def method_state(self) -> dict[str, Any]:
        """The contexts, so that a resumed run edits with the same."""
        return {"contexts": self.contexts}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes the contexts back."""
        self.contexts = list(state["contexts"])

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter that was used, defaults filled in."""
        return super().describe() | {
            "layer": self.layer,
            "v_lr": self.v_lr,
            "v_num_grad_steps": self.steps,
            "v_weight_decay": self.weight_decay,
            "clamp_norm_factor": self.clamp,
            "kl_factor": self.kl_factor,
            "stop_loss": self.stop_loss,
            "mom2_adjustment": self.mom2_adjustment,
            "contexts": self.contexts,
        }

    @property
    def _layer(self) -> int:
        return int(_known(self.layer))

    def _delta(self, keys: Tensor, values: Tensor, v_star: Tensor, outcome: Outcome) -> Delta | None:
        """One request's update; None, with the reason in `outcome`, where it cannot be solved."""
        k_mean = keys.mean(0)
        direction = k_mean if self.covariance is None else self.covariance.solve(k_mean)
        try:
            factors = self.solve(keys, values, v_star, direction)
        except KeditError as error:
            outcome.error = str(error)
            return None
        delta = Delta({self.lm.arch.path("mlp_out", self._layer): Factors(factors.left.float(), factors.right.float())})
        w = weight(self.lm.arch.module(self.lm.model, "mlp_out", self._layer))
        outcome.info["delta_norm"] = delta.norm()
        outcome.info["delta_over_weight"] = delta.norm() / float(w.float().norm())
        outcome.info["k_dot_u"] = float(keys[0] @ direction / direction.norm())
        return delta


def lane_info(lanes: ValueLanes, i: int) -> dict[str, Any]:
    """Figures of one lane of a v* optimisation, JSON-able: what is not finite is None."""
    figures = {
        "loss": float(lanes.total[i]),
        **{name: float(value[i]) for name, value in lanes.terms.items()},
        "v_delta_over_init": float(lanes.delta[i].detach().norm() / lanes.objective.v_init[i].norm()),
    }
    steps = {"steps": int(lanes.steps[i])}
    return {name: value if math.isfinite(value) else None for name, value in figures.items()} | steps


def _known(value: float | None) -> float:
    """A hyperparameter that `setup` has filled in."""
    if value is None:
        raise RuntimeError("hyperparameters are filled in by setup()")
    return value
