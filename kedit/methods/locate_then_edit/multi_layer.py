"""What MEMIT and its kin share: one z per request at the last edited layer, spread over the layers below it."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Generator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kedit.covariance import Covariance, covariances
from kedit.covariance.store import key_width
from kedit.data.batching import suffix_length
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.forward.replay import Site
from kedit.keyvalue import ValueObjective, ValueOptimization
from kedit.keyvalue.contexts import ContextConfig, context_groups
from kedit.keyvalue.keys import context_weights
from kedit.keyvalue.lane_memory import lane_bytes, lanes_that_fit
from kedit.keyvalue.multilayer import JointSolve, solve_layers
from kedit.keyvalue.past_keys import PastKeys
from kedit.keyvalue.published import fill_in
from kedit.methods.base.edit_batch import EditBatch, Outcome
from kedit.methods.base.phase import Barrier, EditProgram, Phase
from kedit.methods.locate_then_edit.base import AUTO, LocateThenEdit, finite, lane_error, lane_info, required
from kedit.methods.locate_then_edit.value_phase import ValuePhase
from kedit.model.architecture import check_layers, weight
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.free_memory import free_memory
from kedit.runtime.progress import stages
from kedit.runtime.room import VALUES, phases_in_parts

GPU_LANES = 128  # MEMIT on one H100, edits per second: 10.0 with 32 lanes, 12.8 with 128

log = logging.getLogger(__name__)


class MultiLayerEditor(LocateThenEdit):
    """Base of the methods that spread an edit over layers: a method gives its closed form, `solve`, and `published`.

    Args:
        layers: Edited layers; null takes the published ones of the model, or layers by its depth; auto traces facts
            that the model knows, and takes as many layers as null does, up to the peak of its MLPs (docs/trace.md).
        contexts: Texts put before the prompt while editing. In the mean key every pair of `lengths` weighs as
            much as the bare prompt.
        **kwargs: The options of `LocateThenEdit`.
    """

    def __init__(
        self,
        *,
        layers: list[int] | Literal["auto"] | None = None,
        contexts: ContextConfig = ContextConfig(lengths=[[10, 5]]),
        **kwargs: Any,
    ) -> None:
        super().__init__(contexts=contexts, **kwargs)
        self.layers = layers
        self.covariances: dict[int, Covariance] = {}
        self.past: PastKeys | None = None
        self._fitting: int | None = None  # lanes of a chunk, where there is too little memory for the usual number

    whitened = False

    @property
    def edited_layers(self) -> list[int]:
        """The edited layers, ascending."""
        return self._layers

    def edit_key(self, keys: Tensor) -> Tensor:
        """The mean within each group of contexts, then over the groups."""
        weights = context_weights(context_groups(self.context_config, self.contexts))
        return keys.new_tensor(weights) @ keys

    # -- what a method defines --------------------------------------------------------------------------

    needs_covariance = True
    """Whether `solve` reads `self.covariances`; where it does not, none is computed."""

    needs_inverse = True
    """Whether it needs their inverse: one that has none then stops the run before the first edit."""

    @abstractmethod
    def solve(self, layer: int, keys: Tensor, residuals: Tensor) -> Factors:
        """The closed form of one layer.

        Args:
            layer: The layer; `self.covariances[layer]` is the covariance of its keys.
            keys: One mean key per request, `[n, d_in]`, float64.
            residuals: What the layer's output should gain for each, `[n, d_model]`, float64.

        Returns:
            The layer's change, Delta = residuals^T X: a row of X, `[n, d_in]`, for each request, in their order.

        Raises:
            KeditError: There is no such change; the requests then fail, and the run goes on.
        """
        raise NotImplementedError

    def sites(self) -> list[Site]:
        """Where v* is optimised, in the last edited layer; the layers are solved for the value of the last site."""
        return [Site("output", self._layers[-1])]

    def divisor(self, left: int) -> float:
        """What the residual is divided by where `left` layers are still to be solved."""
        return left

    def optimization(self, objective: ValueObjective) -> ValueOptimization:
        """The optimisation of v* of some requests."""
        return ValueOptimization(objective, self.stop_loss, required(self.clamp_norm_factor))

    # -- memory: of a method that sets `past` -----------------------------------------------------------

    def after_commit(self, batch: EditBatch) -> None:
        """Remembers the keys of the edits that were made."""
        if self.past is not None:
            self.past.remember([record.request.case_id for record in batch.edited], batch.keys)

    def edit_state(self, records: Sequence[EditRecord]) -> dict[str, Any]:
        """Their keys."""
        return {} if self.past is None else self.past.state([record.request.case_id for record in records])

    def load_edit_state(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        if self.past is not None:
            self.past.load(state)

    # -- Lightning --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Fills in the model's own defaults and checks the layers before anything is computed."""
        if self.layers == AUTO:
            self.layers = self.choose_layers(len(self.published.of(self.lm)["layers"]), "model.layers")
        fill_in(self, self.published, self.lm)
        self.layers = sorted(self._layers)
        check_layers(self.lm.arch, self.layers, "model.layers")
        self._set_lanes()
        data = self._data
        chunks = 1 if self.regime == "single" else -(-data.batch_size // self.lane_count())
        self.steps_per_batch = chunks * (int(required(self.v_num_grad_steps)) - 1)
        super().setup(stage)

    def lane_count(self) -> int:
        """Requests whose v* are optimised side by side."""
        if self._fitting is not None:
            return self._fitting
        on_gpu = not self.lanes and self.regime != "single" and self.trainer.strategy.root_device.type == "cuda"
        return GPU_LANES if on_gpu else super().lane_count()

    def _set_lanes(self) -> None:
        """Fewer lanes than usual where memory is short and the user named no number.

        Not in the single regime, whose edit batches are the lanes: a run must be cut into the same ones when resumed.
        """
        usual, cpu = super().lane_count(), self.trainer.strategy.root_device.type == "cpu"
        if self.lanes or not cpu or self.regime == "single":
            return
        config = self.context_config
        contexts = sum(n for _, n in config.lengths) if config.texts is None else len(config.texts)
        each = lane_bytes(self.lm, contexts + 2, key_width(self.lm, self._layers[-1]))
        lanes = min(distributed.gather(lanes_that_fit(usual, free_memory(), each)))
        if lanes < usual:
            self._fitting = lanes
            log.warning(
                "edit.lanes: %d instead of %d requests are optimised side by side, as memory is short; "
                "name a number to decide yourself",
                lanes,
                usual,
            )

    def start(self) -> None:
        """Contexts and covariances, all of the unedited model."""
        super().start()
        if not self.needs_covariance:
            return
        with stages() as report:
            found = covariances(self.lm, self._layers, self.stats_config, progress=report)
        self.covariances = {layer: cov.to(self.device) for layer, cov in found.items()}
        for cov in self.covariances.values() if self.needs_inverse else ():
            _ = cov.factor  # one that cannot be inverted stops the run here

    def describe(self) -> dict[str, Any]:
        """Provenance: every hyperparameter that was used, defaults filled in."""
        return super().describe() | {"layers": self.layers}

    # -- the algorithm ----------------------------------------------------------------------------------

    def edit(self, batch: EditBatch) -> EditProgram:
        """z of every request by gradient, then the layers one after the other (MEMIT's algorithm 1; baselines 1.0)."""
        z = yield from self._targets(batch)
        found = [i for i, outcome in enumerate(batch.outcomes) if outcome.error is None]
        alone = self.regime == "single"
        systems = [JointSolve([i]) for i in range(len(found))] if alone else [JointSolve(list(range(len(found))))]
        if found:
            norms = solve_layers(
                self.lm,
                [batch.records[i].request for i in found],
                z[found],
                systems,
                self._layers,
                self.contexts,
                context_weights(context_groups(self.context_config, self.contexts)),
                self.solve,
                together=not alone,
                role=self.sites()[-1].role,
                divisor=self.divisor,
            )
            for system in systems:
                self._report(system, [batch.outcomes[i] for i in found], *norms)
        if self.regime == "sequential":
            batch.keys = systems[0].keys
        deltas = [Delta(system.changes) if system.changes else None for system in systems]
        if not alone:
            return deltas
        by_record = dict(zip(found, deltas, strict=True))
        return [by_record.get(i) for i in range(len(batch.records))]

    def _targets(self, batch: EditBatch) -> Generator[Phase, None, Tensor]:
        """z = h + delta of every request, `[n, d_model]` float64, with the weights as they are: chunks of lanes.

        Processes that edit one batch together take turns at its chunks.
        """
        n, size = len(batch.records), self.lane_count()
        order = sorted(range(n), key=lambda i: suffix_length(batch.records[i]))
        chunks = [order[start : start + size] for start in range(0, n, size)]
        z = torch.zeros(n, self.lm.d_model, dtype=torch.float64, device=self.lm.device)
        if self.regime == "single":
            for chunk in chunks:
                z[chunk] = yield from self._lanes(batch, chunk)
            return z
        own = distributed.share(chunks)
        found = []
        for chunk in own:
            found.append((yield from self._lanes(batch, chunk)).cpu())
        yield Barrier()
        told = [[(batch.outcomes[i].info, batch.outcomes[i].error) for i in chunk] for chunk in own]
        parts = distributed.gather_shares(list(zip(found, told, strict=True)))
        for chunk, (targets, outcomes) in zip(chunks, parts, strict=True):
            z[chunk] = targets.to(z)
            for i, (info, error) in zip(chunk, outcomes, strict=True):
                batch.outcomes[i].report(info, error)
        return z

    def _lanes(self, batch: EditBatch, chunk: list[int]) -> Generator[Phase, None, Tensor]:
        """z of some requests, as many side by side as fit into memory, `[n, d_model]` float64."""
        self.measure_lanes([batch.records[i] for i in chunk], self._of_records)
        return torch.cat((yield from phases_in_parts(self.lm.room, VALUES, chunk, lambda part: self._z(batch, part))))

    def _z(self, batch: EditBatch, chunk: Sequence[int]) -> Generator[Phase, None, Tensor]:
        """z of some requests side by side, `[n, d_model]` float64; what came of them goes to their outcomes."""
        lanes = self._of_records([batch.records[i] for i in chunk])
        yield ValuePhase(lanes, required(self.v_lr), int(required(self.v_num_grad_steps)), self.recompute)
        lanes.close()
        for lane, i in enumerate(chunk):
            info = lane_info(lanes, lane) | self.more_info(batch.records[i])
            batch.outcomes[i].report(info, lane_error(lanes, lane))
        return lanes.objective.split(lanes.v_star)[-1].double()

    def _of_records(self, records: Sequence[EditRecord]) -> ValueOptimization:
        """The optimisation of v* of some records, side by side."""
        objective = ValueObjective(
            self.lm,
            [record.request for record in records],
            self.contexts,
            self.sites(),
            self.terms(records),
            bare_weight=self.bare_weight,
        )
        return self.optimization(objective)

    def _report(self, system: JointSolve, outcomes: list[Outcome], before: Tensor, after: Tensor) -> None:
        """Figures of a system, or the reason of its failure, to its members' outcomes."""
        delta = Delta(system.changes)
        modules = delta.modules(self.lm.model).values()
        size = sum(float(weight(module).float().norm()) ** 2 for module in modules) ** 0.5
        for place, i in enumerate(system.members):
            outcomes[i].note(residual=finite(float(before[i])))  # ||z - h||
            if system.error is not None:
                outcomes[i].fail(system.error)
                continue
            outcomes[i].note(
                residual_left=finite(float(after[i] / before[i])),
                strength=[float(shares[place]) for shares in system.shares],
                delta_norm=delta.norm(),
                delta_over_weight=delta.norm() / size,
            )

    @property
    def _layers(self) -> list[int]:
        if self.layers is None or isinstance(self.layers, str):
            raise RuntimeError("layers are filled in by setup()")
        return self.layers
