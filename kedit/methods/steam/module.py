"""STEAM: semantic anchors and an alignment loss on a locate-then-edit method (EMNLP Findings 2025; specs/steam.md)."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import seed_everything

from kedit.data import read_counterfact, read_records
from kedit.errors import KeditError
from kedit.keyvalue import Term
from kedit.methods.base.edit_batch import EditBatch, batch_seed
from kedit.methods.base.edit_config import EditConfig
from kedit.methods.base.method_card import MethodCard
from kedit.methods.base.phase import EditProgram, Phase
from kedit.methods.locate_then_edit.base import LocateThenEdit, finite, required
from kedit.methods.steam import (
    AlignConfig,
    AnchorBank,
    AnchorConfig,
    Pool,
    align_layers,
    read_knowledge,
    read_templates,
    references_of,
)
from kedit.methods.steam.alignment import Alignment
from kedit.methods.wrappers.base import EditorWrapper
from kedit.model.lm import LMConfig
from kedit.request import EditRecord
from kedit.runtime.progress import stage

log = logging.getLogger(__name__)


class STEAM(EditorWrapper[LocateThenEdit]):
    """Draws the edited fact's hidden states to those with which the model says the new object by itself.

    Before the first edit every new object is positioned on the unedited model (its anchor); each v* is then optimised
    with lambda times the alignment loss beside the editor's own terms. Keys, solver and layers stay the
    editor's.

    Args:
        editor: The method that edits: any that optimises v*.
        anchors: Where anchors come from.
        align: The alignment loss.
        compare: Also optimise every v* without the alignment term, and measure what the editor alone does: twice the
            steps. For the single and batch regimes.
    """

    card = MethodCard("Jeong et al., EMNLP Findings 2025", "its editor's matrices", ("subject", "statistics"), "high")

    found_out = (*EditorWrapper.found_out, "aligned_layers", "anchor_sources")

    def __init__(
        self,
        editor: LocateThenEdit,
        anchors: AnchorConfig = AnchorConfig(),
        align: AlignConfig = AlignConfig(),
        compare: bool = False,
    ) -> None:
        super().__init__(editor)
        self.compare = compare
        self._alone = False  # the term is left out
        self.anchor_config, self.align = anchors, align
        self.bank: AnchorBank | None = None
        self.layers: list[int] = []
        self._pool = Pool([])
        self._centre: torch.Tensor | None = None
        self._terms: dict[str, tuple[Alignment, int]] = {}  # case -> its term and lane
        editor.add_terms(self._more_terms, self._more_info)

    def configure(self, lm: LMConfig | None = None, edit: EditConfig | None = None) -> Self:
        """As every wrapper's; `compare` goes without the sequential regime."""
        super().configure(lm, edit)
        if self.compare and self.regime == "sequential":
            raise KeditError(
                "model.compare: in the sequential regime edits accumulate, and the editor alone is a run of its own; "
                "run it, or use single or batch"
            )
        return self

    def setup(self, stage: str) -> None:
        """The editor's, and the layers, as far as they can be known without running the model."""
        super().setup(stage)
        if self.compare:
            self.steps_per_batch *= 2
        if self.align.layers != "auto":
            self.layers = self._choose_layers()
        if not self.align.off:  # a bad file stops the run here, before statistics are made
            self._pool = pool_of(self._data.everything, self.anchor_config)

    def start(self) -> None:
        """The editor's preparation; then the anchors of all objects of the run, of the unedited model."""
        super().start()
        records = self.schedule.edited_in()
        if self.align.off:
            return
        self.bank = AnchorBank(self.lm, records, self._pool, self.anchor_config, self.editor.contexts)
        with stage("anchors: what the model knows (once a run)") as progress:
            self.bank.fill(progress)
        counts = self.bank.counts()
        log.info("anchors of %d records: %s", len(records), ", ".join(f"{n} {name}" for name, n in counts.items()))
        if counts.get("none"):
            log.warning("%d records have no anchor: they are edited by %s alone", counts["none"], self._editor_name)
        self.layers = self._choose_layers()
        centre = self.bank.centre(self.align.center)
        self._centre = None if centre is None else centre[self.layers].to(self.lm.device)

    def edit(self, batch: EditBatch) -> EditProgram:
        """The editor's algorithm, its v* with the alignment term; with `compare`, then once more without it."""
        self._terms, self._alone = {}, False
        deltas = yield from self.editor.edit(batch)
        if self.compare:
            yield from self._compare(batch)
        return deltas

    def _compare(self, batch: EditBatch) -> Generator[Phase, None, None]:
        """The same batch by the editor alone, from the same seed; what came of it goes beside the batch's own."""
        alone = EditBatch.of(batch.index, batch.records)
        seed_everything(batch_seed(self.seed, batch.index), workers=False, verbose=False)
        self._alone = True
        deltas = yield from self.editor.edit(alone)
        for outcome in alone.outcomes:
            if outcome.error is not None:
                outcome.fail(f"{self._editor_name} alone: {outcome.error}")
        batch.add_baseline(deltas, alone.outcomes)

    def describe(self) -> dict[str, Any]:
        """Provenance: the editor's hyperparameters, then those of anchors and alignment."""
        options = {"anchors": asdict(self.anchor_config), "align": asdict(self.align), "aligned_layers": self.layers}
        sources = None if self.bank is None else self.bank.counts()
        return super().describe() | options | {"compare": self.compare, "anchor_sources": sources}

    def _more_terms(self, records: Sequence[EditRecord]) -> Sequence[Term]:
        """The alignment term of some records, a lane each; none where no record has an anchor."""
        if self.bank is None or self._alone:
            return []
        anchors = [self.bank.anchor(record).mean for record in records]
        if all(mean is None for mean in anchors):
            return []
        missing = torch.full((len(self.layers), self.lm.d_model), float("nan"))
        means = torch.stack([missing if mean is None else mean[self.layers] for mean in anchors])
        a = self.align
        term = Alignment(
            means.to(self.lm.device),
            self.layers,
            self._centre,
            a.weighting,
            a.ratio if a.weighting == "grad_ratio" else a.weight,
            warmup=int(required(self.editor.v_num_grad_steps)) // 2 if a.schedule == "linear_warmup" else 0,
            on=a.align_on,
            patience=a.patience,
            tolerance=a.tolerance,
        )
        self._terms |= {record.request.case_id: (term, lane) for lane, record in enumerate(records)}
        return [term]

    def _more_info(self, record: EditRecord) -> dict[str, Any]:
        """The anchor's figures, beside those of a v* that was drawn to it."""
        return {} if self._alone else {"anchor": self._figures(record)}

    def _figures(self, record: EditRecord) -> dict[str, Any] | None:
        """What results keep of an edit's anchor and alignment; None where there is none."""
        if self.bank is None:
            return None
        card: dict[str, Any] = dict(self.bank.anchor(record).card())
        if record.request.case_id not in self._terms:
            return card
        term, lane = self._terms[record.request.case_id]
        weight = None if term.weight is None else finite(float(term.weight[lane]))
        cosines = {name: finite(float(x[lane].mean())) for name, x in (("first", term.first), ("last", term.last))}
        return card | {"lambda": weight, "cosine": cosines if card["source"] != "none" else None}

    def _choose_layers(self) -> list[int]:
        bank, edited = self.bank, self.editor.edited_layers[-1]
        return align_layers(self.align.layers, self.lm.arch.n_layers, edited, lambda: bank.telling() if bank else [])

    @property
    def _editor_name(self) -> str:
        return type(self.editor).__name__


def pool_of(records: Sequence[EditRecord], config: AnchorConfig) -> Pool:
    """References of a data set's records, of further files, and of a user's knowledge bases.

    Raises:
        KeditError: A file cannot be read, or a triple has no template.
    """
    references = references_of(records)
    for path in config.records:
        further = read_records(path) if Path(path).suffix == ".jsonl" else read_counterfact(path)
        references += references_of(further)
    templates = {} if config.templates is None else read_templates(config.templates)
    for path in config.knowledge:
        references += read_knowledge(path, templates)
    return Pool(references)
