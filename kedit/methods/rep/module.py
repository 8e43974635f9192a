"""REP: Robust Edit Pathway on the keys of ROME, R-ROME, MEMIT or EMMET (ACL 2025; specs/rep.md)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from kedit.covariance import corpus_lines
from kedit.data import read_facts
from kedit.data.robust_queries import QueryConfig, with_variants
from kedit.delta.delta import Delta
from kedit.delta.factors import Factors
from kedit.delta.lanes import BatchedDeltas
from kedit.delta.pathway import Pathway
from kedit.delta.pathways import Pathways
from kedit.errors import KeditError
from kedit.keyvalue.contexts import ContextConfig, context_templates
from kedit.methods.base.edit_batch import EditBatch
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.phase import Barrier, EditProgram, Phase
from kedit.methods.locate_then_edit.base import LocateThenEdit
from kedit.methods.locate_then_edit.rome import ROME
from kedit.methods.rep import (
    AdapterConfig,
    AdapterTask,
    AdapterTrainer,
    Claims,
    KeySource,
    choose_edit_strength,
    closed_form,
    parity_config,
    stronger,
    summary_rows,
)
from kedit.methods.rep.adapter_phase import AdapterPhase
from kedit.methods.wrappers.base import EditorWrapper
from kedit.request import EditRecord
from kedit.runtime import distributed
from kedit.runtime.room import ADAPTERS, phases_in_parts


class REP(EditorWrapper[LocateThenEdit]):
    """Robust Edit Pathway: an adapter per edit and layer that brings the subject's other forms to the edited key.

    An edit has two phases: the editor's own steps, then the adapter's, on keys read once.

    Args:
        editor: The method that edits: ROME, RROME, MEMIT or EMMET.
        mode: `trained`: the adapter is trained, as in the paper. `closed_form`: the least move that delivers the
            whole edit, behind a logistic gate; no training.
        parity: Follow the paper's released recipe (10 steps, no negatives, tau 0.9, keys of MEMIT and EMMET not
            whitened) instead of `adapter`, which must then be left as it is.
        adapter: How the adapter is built and trained.
    """

    card = MethodCard(
        "Yan et al., ACL 2025",
        "its editor's matrices, and a gated move of keys",
        ("subject", "statistics"),
        "high",
    )

    def __init__(
        self,
        editor: LocateThenEdit,
        mode: Literal["trained", "closed_form"] = "trained",
        parity: bool = False,
        adapter: AdapterConfig = AdapterConfig(),
    ) -> None:
        super().__init__(editor)
        if parity and mode == "closed_form":
            raise KeditError("model.parity: the paper's recipe trains its adapter; use mode: trained")
        if mode == "closed_form" and adapter.gate == "mlp":
            raise KeditError("model.adapter.gate: the closed form fits a logistic gate; mlp is for mode: trained")
        if parity and adapter not in (AdapterConfig(), parity_config()):
            raise KeditError("model.parity: the paper's recipe replaces model.adapter; give one of the two, not both")
        self.mode, self.parity = mode, parity
        self.adapter = parity_config() if parity else adapter
        self.source: KeySource | None = None
        self._claims: Claims = {}  # of a run that is resumed

    def setup(self, stage: str) -> None:
        """The editor's, and the adapter's steps."""
        super().setup(stage)
        chunks = 1 if self.regime == "single" else -(-self.schedule.size // self.lane_count())
        adapters = chunks * len(self.editor.edited_layers)
        self.steps_per_batch += adapters * self.adapter.steps

    def start(self) -> None:
        """The editor's preparation; then what all adapters share: contexts, other subjects, ordinary text."""
        super().start()
        records = self.schedule.edited_in()
        plain = [record for record in records if record.variants is None]
        drawn = with_variants(self.lm, plain, QueryConfig(long_contexts=0, train_long=self.adapter.long_contexts))
        self.drawn = {record.request.case_id: record.variants for record in drawn}
        contexts = list(self.editor.contexts)
        if self.parity and not isinstance(self.editor, ROME):  # it makes its own, of ROME's kind
            contexts += context_templates(self.lm, ContextConfig(), self.seed)[1:]
        c = self.adapter
        others: list[str] = []
        if c.others:
            others = [r.request.named("REP") for r in [*records, *read_facts("train")]]
        ids = None
        if c.corpus_tokens:
            lines = corpus_lines(self.lm, self.editor.stats_config, 8 * c.corpus_tokens)
            ids = torch.tensor(self.lm.encode(" ".join(lines))[: c.corpus_tokens])
        claims = {
            layer: {case: (subject, keys.to(self.device)) for case, (subject, keys) in of_layer.items()}
            for layer, of_layer in self._claims.items()
        }
        self.source = KeySource(self.lm, c, contexts, len(self.editor.contexts), others, ids, claims)
        self.source.read_shared(self.editor.edited_layers)
        if self.regime == "single" and c.other_edits:
            for layer in self.editor.edited_layers:
                self.source.claim(records, layer, None, [-1] * len(records))

    def edit(self, batch: EditBatch) -> EditProgram:
        """The editor's algorithm, then an adapter for each edit and layer, from the lowest layer up."""
        deltas = yield from self.editor.edit(batch)
        batch.add_baseline(deltas)
        return (yield from self.adapt(batch, deltas))

    def adapt(self, batch: EditBatch, deltas: Sequence[Delta | None]) -> EditProgram:
        """Adds the adapters to what the editor has changed."""
        deltas = list(deltas)
        edits = _edits(batch, deltas, alone=self.regime == "single")
        k_stars: list[dict[str, list[Tensor]]] = [{} for _ in deltas]
        for layer in self.editor.edited_layers:
            path = self.lm.arch.path("mlp_out", layer)
            pathways: dict[int, list[Pathway]] = {}
            self._claim(batch, deltas, edits, layer)
            for (record, lane, _), adapter in (yield from self._adapters(batch, deltas, edits, layer, path)):
                pathways.setdefault(lane, []).append(adapter.pathway.to(self.device))
                k_stars[lane].setdefault(path, []).append(adapter.k_star.to(self.device))
                batch.outcomes[record].info.setdefault("pathway", {})[str(layer)] = adapter.figures
            deltas = [_with(delta, path, pathways.get(i, [])) for i, delta in enumerate(deltas)]
        return self._strengthen(batch, deltas, k_stars, edits)

    def _adapters(
        self, batch: EditBatch, deltas: Sequence[Delta | None], edits: list[_Edit], layer: int, path: str
    ) -> Generator[Phase, None, list[tuple[_Edit, _Adapter]]]:
        """An adapter for each edit at one layer, some lanes at a time; processes that edit together take turns."""
        size = self.lane_count()
        chunks = [edits[start : start + size] for start in range(0, len(edits), size)]
        together = self.regime != "single"
        trained: list[list[_Adapter]] = []
        for some in distributed.share(chunks) if together else chunks:
            parts = yield from phases_in_parts(
                self.lm.room, ADAPTERS, some, lambda part: self._trained(batch, deltas, part, layer, path)
            )
            trained.append([adapter for part in parts for adapter in part])
        if together:
            yield Barrier()
            trained = distributed.gather_shares([[adapter.on_cpu() for adapter in some] for some in trained])
        pairs = zip(chunks, trained, strict=True)
        return [pair for some, adapters in pairs for pair in zip(some, adapters, strict=True)]

    def _trained(
        self, batch: EditBatch, deltas: Sequence[Delta | None], edits: Sequence[_Edit], layer: int, path: str
    ) -> Generator[Phase, None, list[_Adapter]]:
        """Adapters of some edits, side by side."""
        tasks = self._tasks(batch, deltas, edits, layer, path)
        pathways = yield from self._pathways(tasks)
        made = zip(pathways, tasks, summary_rows(pathways, tasks), strict=True)
        return [_Adapter(pathway, task.k_star, figures) for pathway, task, figures in made]

    def _strengthen(
        self,
        batch: EditBatch,
        deltas: list[Delta | None],
        k_stars: list[dict[str, list[Tensor]]],
        edits: list[_Edit],
    ) -> list[Delta | None]:
        """Lets the adapters deliver the share of the edit that `edit_strength` says, or that their variants need."""
        lanes = [i for i, delta in enumerate(deltas) if delta is not None and delta.of_kind(Pathways)]
        adapted = [deltas[i] or Delta() for i in lanes]
        if self.adapter.edit_strength is None and lanes:
            records = [[self._with_variants(batch.records[r]) for r, lane, _ in edits if lane == i] for i in lanes]
            choices, most = self.adapter.edit_strengths, self.adapter.strength_variants
            chosen = choose_edit_strength(self.lm, adapted, [k_stars[i] for i in lanes], records, choices, most)
        else:
            chosen = [self.adapter.edit_strength or 1.0] * len(lanes)
        result = list(deltas)
        for i, delta, edit_strength in zip(lanes, adapted, chosen, strict=True):
            result[i] = stronger(delta, k_stars[i], edit_strength) if edit_strength != 1.0 else delta
            for record, lane, _ in edits:
                if lane == i:
                    batch.outcomes[record].note(pathway_edit_strength=edit_strength)
        return result

    def _with_variants(self, record: EditRecord) -> EditRecord:
        return record if record.variants is not None else replace(record, variants=self.drawn[record.request.case_id])

    def _claim(self, batch: EditBatch, deltas: Sequence[Delta | None], edits: list[_Edit], layer: int) -> None:
        """Edits that act together keep their gates shut at each other's prompts, as they are by then."""
        if self.regime == "single" or not self.adapter.other_edits:
            return
        assert self.source is not None
        bank = BatchedDeltas(self.lm.model, [delta or Delta() for delta in deltas])
        self.source.claim([batch.records[i] for i, _, _ in edits], layer, bank, [lane for _, lane, _ in edits])

    def _tasks(
        self, batch: EditBatch, deltas: Sequence[Delta | None], edits: Sequence[_Edit], layer: int, path: str
    ) -> list[AdapterTask]:
        """Keys of some edits at one layer, under the edit and the adapters of the layers below."""
        assert self.source is not None
        bank = BatchedDeltas(self.lm.model, [delta or Delta() for delta in deltas])
        rows = []
        for _, lane, row in edits:
            delta = deltas[lane]
            assert delta is not None
            rows.append(delta.of_kind(Factors)[path].right[row])
        records = [self._with_variants(batch.records[i]) for i, _, _ in edits]
        lanes = [lane for _, lane, _ in edits]
        raw = self.parity and not self.editor.whitened
        return self.source.tasks(records, layer, torch.stack(rows), self.editor.edit_key, bank, lanes, raw=raw)

    def _pathways(self, tasks: list[AdapterTask]) -> Generator[Phase, None, list[Pathway]]:
        if self.mode == "closed_form":
            return closed_form(tasks, self.adapter)
        lanes = AdapterTrainer(tasks, self.adapter)
        yield AdapterPhase(lanes)
        return lanes.pathways()

    def edit_state(self, records: Sequence[EditRecord]) -> dict[str, Any]:
        """The editor's, and the keys that the edits have claimed."""
        claims = {} if self.source is None else self.source.claims
        kept: Claims = {}
        for layer, of_layer in claims.items():
            mine = [(r.request.case_id, of_layer[r.request.case_id]) for r in records if r.request.case_id in of_layer]
            kept[layer] = {case: (subject, keys.cpu()) for case, (subject, keys) in mine}
        return super().edit_state(records) | {"claims": kept}

    def load_edit_state(self, state: dict[str, Any]) -> None:
        """Both are taken back."""
        super().load_edit_state(state)
        for layer, claims in state["claims"].items():
            self._claims.setdefault(layer, {}).update(claims)

    def describe(self) -> dict[str, Any]:
        """Provenance: the editor's hyperparameters, then the adapter's."""
        options = {"mode": self.mode, "parity": self.parity, "adapter": asdict(self.adapter)}
        return super().describe() | options


_Edit = tuple[int, int, int]  # record, delta, row of the delta's factors


@dataclass(frozen=True)
class _Adapter:
    """What was trained for an edit at a layer: the adapter, the key that it leads to, figures for the results."""

    pathway: Pathway
    k_star: Tensor
    figures: dict[str, Any]

    def on_cpu(self) -> _Adapter:
        return _Adapter(self.pathway.to("cpu"), self.k_star.cpu(), self.figures)


def _edits(batch: EditBatch, deltas: Sequence[Delta | None], alone: bool) -> list[_Edit]:
    """The edits that were made. A delta of many requests has a row for each, in their order."""
    made = [i for i, outcome in enumerate(batch.outcomes) if outcome.error is None]
    return [(i, i, 0) if alone else (i, 0, row) for row, i in enumerate(made) if deltas[i if alone else 0] is not None]


def _with(delta: Delta | None, path: str, pathways: list[Pathway]) -> Delta | None:
    if delta is None or not pathways:
        return delta
    return delta.with_changes({path: Pathways(tuple(pathways))})
