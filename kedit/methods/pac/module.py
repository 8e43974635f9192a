"""PAC: contrastive rectifying of the critical transmission paths of a fact (ACL 2025; specs/pac.md)."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import asdict, replace
from typing import Any, Literal, Self

import torch

from kedit.data import read_facts
from kedit.errors import KeditError
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.module import EditingModule
from kedit.methods.base.phase import EditProgram, Phase
from kedit.methods.locate_then_edit.base import finite
from kedit.methods.pac import (
    BATCH,
    ContrastConfig,
    Labelled,
    LocalityConfig,
    LocalityTerm,
    Profile,
    Progress,
    RectifyLoop,
    Request,
    Selection,
    TraceConfig,
    TrainableNodes,
    TrainConfig,
    checked,
    choose,
    labelled,
    layer_weights,
    nodes_to_choose_from,
    released,
    requests_of,
    score_requests,
)
from kedit.methods.pac.passes import cached_passes
from kedit.methods.pac.rectify_phase import RectifyPhase
from kedit.methods.pac.requests import Logits
from kedit.model.lm import LMConfig
from kedit.runtime import distributed

log = logging.getLogger(__name__)


class PAC(EditingModule):
    """Trains the FFN key and value vectors on the critical paths of the facts, and a contrast on insignificant ones.

    Trace, then rectify: the nodes T+ whose gradients stand out are trained to say the new target; those of the lowest
    score, T-, are trained to say what the unedited model says. Works on requests without a subject.

    Args:
        scope: Whose paths are trained. `dataset`: those of all requests of the run (traced once, on the unedited
            model, where there are several edit batches). `batch`: those of an edit batch. `edit`: those of each
            request by itself, one request after another, each until its target is the argmax.
        parity: Follow the released run: lr 1e-5, mini-batches of two (traced as they are drawn), paths traced again
            every 2 passes, one Adam, no stopping, no locality term. The edit batch is the edit set. `train` must be
            left as it is, or be these values with any number of `passes`; `contrast` and `trace` are as given.
        trace: How paths are traced and how many nodes are on them.
        train: How they are trained.
        contrast: The contrastive term.
        locality: The locality term.
    """

    card = MethodCard("Zhai et al., ACL 2025", "rows and columns of all FFN matrices", cost="high")

    usual_regime = "batch"
    needs_subject = False
    merges_deltas = True

    def __init__(
        self,
        scope: Literal["dataset", "batch", "edit"] = "batch",
        parity: bool = False,
        trace: TraceConfig = TraceConfig(),
        train: TrainConfig = TrainConfig(),
        contrast: ContrastConfig = ContrastConfig(),
        locality: LocalityConfig = LocalityConfig(),
    ) -> None:
        super().__init__()
        if parity:
            train, contrast, locality = released(scope, train, contrast, locality)
        contrast = checked(trace, train, contrast)
        self.scope, self.parity = scope, parity
        self.trace_config, self.train_config, self.contrast, self.locality = trace, train, contrast, locality
        self.profile = Profile()
        self.locality_term: LocalityTerm | None = None
        self.requests: dict[str, Request] = {}
        self._chosen: tuple[Selection, Any] | None = None  # of the whole run
        self._read: Logits | None = None

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """As every method's; the nodes of a group of requests are trained together, so that there are no lanes."""
        if edit is not None and edit.lanes not in (0, 1):
            raise KeditError(f"edit.lanes: PAC edits without lanes and cannot use {edit.lanes} of them; leave it out")
        return super().configure(lm, edit)

    def lane_count(self) -> int:
        """One: there are no lanes."""
        return 1

    @property
    def contrasts(self) -> bool:
        """Whether T- is trained."""
        return (
            self.contrast.weight > 0 and self.trace_config.contrast_nodes > 0 and self.trace_config.node_source != "all"
        )

    def setup(self, stage: str) -> None:
        """Sizes the run."""
        super().setup(stage)
        n = 1 if self.regime == "single" else self.schedule.size
        t = self.train_config
        per_pass = n if self.scope == "edit" else -(-n // t.mini_batch)
        turns = 2 if self.contrasts and t.objective == "alternate" else 1
        self.steps_per_batch = per_pass * t.passes * turns
        if self.regime != "single" and distributed.world_size() > 1:
            log.info("PAC trains one set of nodes: all %d processes take the same steps", distributed.world_size())

    def start(self) -> None:
        """What the unedited model says: to every request, and to the prompts that are to stay as they are."""
        nodes_to_choose_from(self.lm, self.trace_config)
        records = self.schedule.edited_in()
        self.requests = {request.case: request for request in requests_of(self.lm, records, self.contrast.original)}
        if self.locality.weight > 0:
            self.locality_term = LocalityTerm(self.lm, self.locality, records, read_facts("train"), self.seed)
        if self.train_config.cached_inputs:
            self._read = cached_passes(self.lm, self.trace_config, self.requests.values(), self.locality_term)
        if self.scope == "dataset" and len(self.schedule.batches) > 1:
            self.profile = Profile()  # a resumed run traces again what it has in there
            self._chosen = self._choose([self.requests[r.request.case_id] for r in records])

    def edit(self, batch: EditBatch) -> EditProgram:
        """Traces and rectifies: the edit batch as one, or one request after another (`scope: edit`)."""
        generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
        progress: dict[str, Progress] = {}
        sides = self._sides()
        requests = [self.requests[record.request.case_id] for record in batch.records]
        groups = [[request] for request in requests] if self.scope == "edit" else [requests]
        nodes: dict[str, int] = {}
        earlier = self._earlier(batch.index)
        for group in groups:
            sides.begin()
            try:
                size = yield from self._rectify(sides, group, generator, progress, earlier)
                self._look(sides, group, progress)
            except KeditError as error:
                sides.undo()
                for request in group:
                    batch.outcomes[requests.index(request)].fail(str(error))
                continue
            nodes |= dict.fromkeys([request.case for request in group], size)
            earlier += group
        if self.scope == "edit" and len(requests) > 1:  # later edits may have undone earlier ones
            self._look(sides, requests, progress)
        for request, outcome in zip(requests, batch.outcomes, strict=True):
            fared = progress.get(request.case, Progress())
            outcome.note(
                steps=fared.steps,
                loss=finite(fared.loss),
                answered=fared.answered,
                nodes=nodes.get(request.case),
                rollbacks=fared.rollbacks,
            )
        failed = all(outcome.error is not None for outcome in batch.outcomes)
        return [None if failed else sides.delta(self.contrast.merge)]

    def _earlier(self, index: int) -> list[Request]:
        """The requests of the edit batches that are part of the weights."""
        if self.regime != "sequential":
            return []
        return [self.requests[record.request.case_id] for record in self.schedule.edited_in(index)]

    def _sides(self) -> TrainableNodes:
        t, c = self.train_config, self.contrast
        contrast_lr = (t.lr if c.lr is None else c.lr) if self.contrasts else None
        return TrainableNodes(self.lm, t.bias, t.lr, contrast_lr, t.shared_adam, c.theta)

    def _rectify(
        self,
        sides: TrainableNodes,
        requests: list[Request],
        generator: torch.Generator,
        progress: dict[str, Progress],
        earlier: list[Request],
    ) -> Generator[Phase, None, int]:
        """Traces, trains, and traces again every `retrace` passes; the number of nodes in T+ at last."""
        t, size = self.train_config, 0
        options = replace(t, mini_batch=1) if self.scope == "edit" else replace(t, rehearse=0)
        period = t.retrace or t.passes
        for done in range(0, t.passes, period):
            with sides.installed("critical", learn=False):
                selection, weights = self._chosen or self._choose(requests, generator)
            if not t.shared_adam:
                sides.forget()
            optimizer = sides.take(selection, weights)
            size = sum(len(nodes) for nodes in selection.critical.values())
            passes = min(period, t.passes - done)
            parts = (options, self.contrast, self.locality, passes, generator, self.locality_term)
            loop = RectifyLoop(self.lm, sides, requests, *parts, progress, earlier, self._read)
            phase = RectifyPhase(loop, optimizer)
            yield phase
            if phase.error is not None:
                raise phase.error
            loop.finish()
            if loop.learned:
                break
        return size

    def _choose(self, requests: list[Request], generator: torch.Generator | None = None) -> tuple[Selection, Any]:
        """Nodes of the requests at the weights as they are, and the layers' weights where these are asked for."""
        t = self.train_config
        generator = generator or torch.Generator().manual_seed(self.seed)
        size = t.mini_batch if self.parity else BATCH
        if self.parity:
            order = torch.randperm(len(requests), generator=generator).tolist()
        else:
            order = sorted(range(len(requests)), key=lambda i: len(requests[i].text.ids))
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        batches = [self._labelled([requests[i] for i in part], len(requests)) for part in parts]
        selection, scores = choose(self.lm, batches, self.trace_config, generator)
        if scores is None:
            return selection, None
        self.profile.add(scores)
        return selection, layer_weights(scores, self.trace_config.nodes) if t.layer_weights else None

    def _labelled(self, requests: list[Request], n: int) -> Labelled:
        """A batch to trace: the released code's mean over it, or, without parity, its share of the mean over all."""
        batch = labelled(self.lm, [request.text for request in requests], self.train_config.per_edit)
        if self.parity:
            return batch
        return Labelled(batch.ids, batch.rows, batch.cols, batch.labels, batch.weights * (len(requests) / n))

    def _look(self, sides: TrainableNodes, requests: list[Request], progress: dict[str, Progress]) -> None:
        """How the requests fare with the changes as they will be delivered.

        Raises:
            KeditError: A loss is not finite.
        """
        fared = score_requests(self.lm, sides.delta(self.contrast.merge), requests, self._read)
        for request, loss, yes in zip(requests, *fared, strict=True):
            progress.setdefault(request.case, Progress()).look(loss, yes)

    def whole_profile(self) -> Profile:
        """That of all processes, which trace paths of their own in the single regime; to be called by all of them."""
        return Profile.of(distributed.gather(self.profile)) if self.regime == "single" else self.profile

    def method_state(self) -> dict[str, Any]:
        """The profile of the paths traced so far."""
        return {"profile": self.whole_profile().state()}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes it back."""
        if self.regime != "single" or distributed.is_main():
            self.profile.load(state["profile"])

    def describe(self) -> dict[str, Any]:
        """Provenance: every option."""
        return super().describe() | {
            "scope": self.scope,
            "parity": self.parity,
            "trace": asdict(self.trace_config),
            "train": asdict(self.train_config),
            "contrast": asdict(self.contrast),
            "locality": asdict(self.locality),
        }
