"""What ROME and R-ROME share: one layer, one v* per request, a rank-one update from C^-1 k."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, Literal

from torch import Tensor

from kedit.covariance import Covariance, covariances
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.errors import KeditError
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective, ValueOptimization
from kedit.keyvalue.published import fill_in
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.phase import EditProgram, Phase
from kedit.methods.locate_then_edit.base import AUTO, LocateThenEdit, lane_error, lane_info, required
from kedit.methods.locate_then_edit.value_phase import ValuePhase
from kedit.model.architecture import check_layers, weight
from kedit.request import EditRecord
from kedit.runtime.progress import stages
from kedit.runtime.room import VALUES, phases_in_parts


class SingleLayerEditor(LocateThenEdit):
    """Base of ROME and R-ROME; they differ in `solve` and `published`.

    Args:
        layer: Edited layer; null takes the published layer of the model, or 17 % of its depth; auto traces facts that
            the model knows, and takes the peak of its MLPs (docs/trace.md).
        mom2_adjustment: Use the covariance of keys, u = C^-1 k. False takes u = k (C = I), as several
            published configurations do.
        **kwargs: The options of `LocateThenEdit`.
    """

    regimes = ("single", "sequential")

    def __init__(
        self, *, layer: int | Literal["auto"] | None = None, mom2_adjustment: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.layer = layer
        self.mom2_adjustment = mom2_adjustment
        self.covariance: Covariance | None = None

    def setup(self, stage: str) -> None:
        """Fills in the model's own defaults and checks the layer before anything is computed."""
        if self.layer == AUTO:
            (self.layer,) = self.choose_layers(1, "model.layer")
        fill_in(self, self.published, self.lm)
        check_layers(self.lm.arch, [self._layer], "model.layer")
        self.steps_per_batch = int(required(self.v_num_grad_steps)) - 1
        super().setup(stage)
        data = self._data
        if self.regime == "sequential" and data.batch_size != 1:
            raise KeditError(
                f"data.batch_size: {type(self).__name__} edits one request at a time, not {data.batch_size}"
            )

    def start(self) -> None:
        """Contexts and covariance, both of the unedited model."""
        super().start()
        if self.mom2_adjustment:
            with stages() as report:
                found = covariances(self.lm, [self._layer], self.stats_config, progress=report)
            self.covariance = found[self._layer].to(self.device)

    def edit(self, batch: EditBatch) -> EditProgram:
        """v* of every request by gradient, then one closed form each (ROME's section 3.1; baselines 1.3)."""
        self.measure_lanes(batch.records, self._optimization)
        lanes = range(len(batch.records))
        parts = yield from phases_in_parts(self.lm.room, VALUES, lanes, lambda part: self._edited(batch, part))
        return [delta for part in parts for delta in part]

    def _edited(self, batch: EditBatch, part: Sequence[int]) -> Generator[Phase, None, list[Delta | None]]:
        """Some of the requests, side by side."""
        lanes = self._optimization([batch.records[i] for i in part])
        yield ValuePhase(lanes, required(self.v_lr), int(required(self.v_num_grad_steps)), self.recompute)
        lanes.close()
        keys, values = (t.double() for t in lanes.objective.keys_and_values())
        v_star = lanes.v_star.double()
        deltas: list[Delta | None] = []
        for i, outcome in enumerate(batch.outcomes[j] for j in part):
            outcome.report(lane_info(lanes, i) | self.more_info(outcome.record), lane_error(lanes, i))
            deltas.append(None if outcome.error else self._delta(keys[i], values[i], v_star[i], outcome))
        return deltas

    def _optimization(self, records: Sequence[EditRecord]) -> ValueOptimization:
        """That of v* of some records, side by side."""
        objective = ValueObjective(
            self.lm,
            [record.request for record in records],
            self.contexts,
            [Site("mlp", self._layer)],
            terms=self.terms(records),
            bare_weight=self.bare_weight,
        )
        return ValueOptimization(objective, self.stop_loss, required(self.clamp_norm_factor))

    def direction_key(self, keys: Tensor) -> Tensor:
        """The key k in u = C^-1 k, from those of the contexts `[n_contexts, d_in]`: their mean."""
        return keys.mean(0)

    @abstractmethod
    def solve(self, keys: Tensor, values: Tensor, v_star: Tensor, direction: Tensor) -> Factors:
        """The closed form.

        Args:
            keys: Keys of the contexts, the bare prompt first, `[n_contexts, d_in]`.
            values: Outputs of the layer for them, `[n_contexts, d_model]`.
            v_star: The value wanted, `[d_model]`.
            direction: C^-1 times `direction_key`, `[d_in]`.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter that was used, defaults filled in."""
        return super().describe() | {"layer": self.layer, "mom2_adjustment": self.mom2_adjustment}

    @property
    def edited_layers(self) -> list[int]:
        """The one layer."""
        return [self._layer]

    @property
    def _layer(self) -> int:
        if not isinstance(self.layer, int):
            raise RuntimeError("the layer is filled in by setup()")
        return self.layer

    def _delta(self, keys: Tensor, values: Tensor, v_star: Tensor, outcome: Outcome) -> Delta | None:
        """One request's update; None, with the reason in `outcome`, where it cannot be solved."""
        key = self.direction_key(keys)
        direction = key if self.covariance is None else self.covariance.solve(key)
        try:
            factors = self.solve(keys, values, v_star, direction)
        except KeditError as error:
            outcome.fail(str(error))
            return None
        delta = Delta({self.lm.arch.path("mlp_out", self._layer): Factors(factors.left.float(), factors.right.float())})
        w = weight(self.lm.arch.module(self.lm.model, "mlp_out", self._layer))
        outcome.note(
            delta_norm=delta.norm(),
            delta_over_weight=delta.norm() / float(w.float().norm()),
            k_dot_u=float(keys[0] @ direction / direction.norm()),
        )
        return delta
